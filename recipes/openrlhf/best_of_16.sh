# Best-of-16 with OpenRLHF. my_rewards.py has reward_func(queries, prompts, labels), which returns
# bontune.integrations.openrlhf.reward_result(reward, verifier_score=...) for its one response.
BONTUNE_OBJECTIVE='BestOfN(budget=16)' python -m bontune.integrations.openrlhf \
    --actor.model_name_or_path Qwen/Qwen2.5-1.5B-Instruct --reward.remote_url my_rewards.py \
    --algo.advantage.estimator reinforce --algo.kl.init_coef 0 \
    --rollout.batch_size 64 --rollout.n_samples_per_prompt 64 --train.batch_size 4096 --train.max_epochs 1 \
    --actor.loss_agg_mode token-mean --rollout.top_p 1 "$@"
