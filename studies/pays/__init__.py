"""Where it pays to train for the strategy that serves: theory, and what comes out.

python -m studies.pays theory --docs docs    # tables and figure of docs/pays.md, about a CPU minute
"""
