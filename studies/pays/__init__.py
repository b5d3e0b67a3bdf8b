"""Where it pays to train for the strategy that serves: theory, and what comes out.

python -m studies.pays theory --docs docs    # tables and figure of docs/pays.md, about a CPU minute
python -m studies.pays dial --docs docs      # training where prompts leave open what is meant; says first what it costs
python -m studies.pays real --docs docs      # SmolLM2-135M on GSM8K, hours; goes on where it was stopped
python -m studies.pays votes --docs docs     # training for a vote, four CPU minutes a policy
python -m studies.pays checks --docs docs    # training by a check that errs, of four AUCs, about two CPU hours
python -m studies.pays longer --docs docs    # ten times the steps of the paper's study, about ten CPU minutes a policy
"""
