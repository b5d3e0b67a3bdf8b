"""A real pretrained model on real problems: SmolLM2-135M fine-tuned on GSM8K, trained further by several objectives.

    python -m studies.real STAGE --seconds S --output DIR --data DIR

Each stage has a time budget, stops before it is over, and goes on where it stopped when it is called again. Nothing is
fetched: the model comes from a GGUF file or a folder, the problems from gsm8k_train.jsonl.gz and gsm8k_test.jsonl.gz.
"""

import time

STARTED = time.monotonic()  # before the libraries are loaded, which counts as well
