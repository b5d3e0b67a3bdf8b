"""TRL's trainer with a strategy, its model split by DeepSpeed over two processes (`make test-deepspeed`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("deepspeed", reason="DeepSpeed is in an environment of its own: make test-deepspeed")
pytest.importorskip("trl")

from safetensors.torch import load_file
from test_integration_trl import error, groups_of, plain_gradients, tiny_model

from bontune import BestOfN

pytestmark = pytest.mark.slow

_RUN = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import deepspeed
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

# accelerate splits over accelerators alone; told that it has gloo and CPUs, all else is as it would be there.
PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_CPU)
from test_integration_deepspeed import policy
from test_integration_trl import Record, config, train
from bontune import BestOfN

record = Record(undecided="w7")
settings = {{
    "zero_optimization": {{"stage": {stage}, "stage3_gather_16bit_weights_on_model_save": True}},
    "zero_allow_untested_optimizer": True,
    "gradient_clipping": 0.0,
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
}}
args = config(
    Path({out!r}), per_device_train_batch_size=3, gradient_accumulation_steps=2, num_generations=4, optim="sgd",
    learning_rate=1.0, lr_scheduler_type="constant", weight_decay=0.0, use_cpu=False, deepspeed=settings,
)
model = policy({adapters})
before = {{name: parameter.detach().clone() for name, parameter in model.named_parameters()}}
trainer = train(record, args, model, objective=BestOfN(2), scorer=record.score)
assert trainer.accelerator.num_processes == 2
assert trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
assert trainer.model_wrapped.zero_optimization_stage() == {stage}
inner = trainer.accelerator.unwrap_model(trainer.model_wrapped)
moved = {{}}
for name, parameter in inner.named_parameters():
    with deepspeed.zero.GatheredParameters([parameter]):
        if parameter.requires_grad:
            moved[name] = before[name].double() - parameter.detach().double()
torch.save((record.rows, moved), {out!r} + f"/rank-{{trainer.accelerator.process_index}}")
trainer.save_model({out!r} + "/model")
torch.distributed.destroy_process_group()
"""


def policy(adapters: bool) -> Any:
    model = tiny_model()
    if not adapters:
        return model
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model, settings)


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_split_model_takes_the_step_of_plain_autograd(stage: int, adapters: bool, tmp_path: Path) -> None:
    """A step of stochastic gradient descent moves parameters by the gradient; the saved model has moved as far."""
    script = tmp_path / "run.py"
    tests = str(Path(__file__).parent)
    script.write_text(_RUN.format(tests=tests, out=str(tmp_path), stage=stage, adapters=adapters))
    alone = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        env=os.environ | alone | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (first, one), (second, other) = (
        torch.load(tmp_path / f"rank-{rank}", weights_only=False) for rank in (0, 1)
    )
    weights = BestOfN(2).weights(groups_of(first + second, 4, scored=True))
    assert int((weights != 0).sum()) > 0
    expected = plain_gradients(policy(adapters), first + second, weights, 1.3)
    assert error(one, expected) < 3e-6
    assert error(other, expected) < 3e-6
    name = "adapter_model.safetensors" if adapters else "model.safetensors"
    saved = load_file(tmp_path / "model" / name)
    start = dict(policy(adapters).named_parameters())
    for key, step in one.items():
        found = saved[key.replace(".default", "")]
        assert torch.allclose(found.double(), start[key].detach().double() - step, atol=1e-6)
