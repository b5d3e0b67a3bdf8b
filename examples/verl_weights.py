"""What verl's own advantage computation gives with bontune's estimator, on eight responses. No GPU, no model:

pip install 'bontune[verl]'
python verl_weights.py
"""

from __future__ import annotations

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.ray_trainer import compute_advantage

from bontune.integrations.verl import beside_rewards, reward_result

# What a reward function of verl returned, for two prompts with four responses each: the truth, and the verifier's score.
JUDGED = [
    ("p0", reward_result(1.0, verifier_score=0.2)),
    ("p1", reward_result(0.0, verifier_score=0.9)),
    ("p0", reward_result(0.0, verifier_score=0.7)),
    ("p1", reward_result(None, verifier_score=0.4)),  # could not be decided
    ("p0", reward_result(1.0, verifier_score=0.9)),
    ("p1", reward_result(1.0, verifier_score=0.5)),
    ("p0", reward_result(0.0, verifier_score=0.1)),
    ("p1", reward_result(0.0, verifier_score=0.3)),
]


def main() -> None:
    mask = torch.ones(len(JUDGED), 2, dtype=torch.long)
    rewards = torch.zeros(len(JUDGED), 2)
    rewards[:, -1] = torch.tensor([result["score"] for _, result in JUDGED])  # verl: on the last token
    for objective in ("BestOfN(budget=2)", "PassAtK(budget=2)", "GRPO"):
        data = DataProto.from_dict(
            tensors={"token_level_rewards": rewards, "response_mask": mask},
            non_tensors={"uid": np.array([uid for uid, _ in JUDGED], dtype=object)},
        )
        config = OmegaConf.create({"bontune": {"objective": objective, "group_size": 4}})
        with beside_rewards([result for _, result in JUDGED]):
            found = compute_advantage(data, adv_estimator="bontune", config=config).batch["advantages"][:, 0]
        print(objective)
        for uid in ("p0", "p1"):
            rows = [i for i, (name, _) in enumerate(JUDGED) if name == uid]
            print(f"  {uid}", *(f"{found[i]:+.3f}" for i in rows))


if __name__ == "__main__":
    main()
