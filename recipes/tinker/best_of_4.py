"""Best-of-4 with tinker-cookbook: its own recipe rl_basic (GSM8K, groups of 16) for another objective. It needs a key of
Tinker, and no verifier: the truth selects.

    python recipes/tinker/best_of_4.py
"""

import asyncio

import chz
from tinker_cookbook.recipes.rl_basic import build_config_blueprint

from bontune.integrations.tinker import train

if __name__ == "__main__":
    config = build_config_blueprint().make()
    asyncio.run(train(chz.replace(config, temperature=1.0), "BestOfN(budget=4)"))
