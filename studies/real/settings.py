"""All sizes of the study, and its methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

BASE = "base"  # the name of the policy that every method starts from
TINY = "tiny-model"  # the folder of the model that is none
RESPONSES_SEED = 2412  # of the problems measured on and the responses to them: the same for every policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to train.

    objective: as `bontune train --objective` takes it.
    budget: the N it trains for; a sweep chooses the learning rate with the highest pass@budget on tune problems.
    verified: whether it learns from the scores of the learned verifier; its rate is chosen by best-of-N by these, N = 8.
    """

    name: str
    title: str
    objective: str
    budget: int = 1
    verified: bool = False


# The most informative first: the order in which they are trained.
METHODS = {
    method.name: method
    for method in (
        Method(name="LogPassAtN", title="log pass@32", objective="LogPassAtN(budget=32)", budget=32),
        Method(name="MaxRL", title="MaxRL", objective="MaxRL()"),
        Method(name="RLOO", title="RLOO", objective="RLOO()"),
        Method(
            name="BoNRLS",
            title="exact BoN-RL-S, N = 32",
            objective="BoNRL(budget=32, selector='environment', form='exact')",
            budget=32,
        ),
        Method(name="GRPO", title="GRPO", objective="GRPO()"),
        Method(
            name="BoNRLV",
            title="exact BoN-RL-V, N = 8",
            objective="BoNRL(budget=8, form='exact', baseline='centred')",
            budget=8,
            verified=True,
        ),
        Method(name="RLV", title="RL-V", objective="RLOO(by='score')", verified=True),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Every method draws steps x prompts_per_step x group_size responses in training.

    steps: None to choose them by the time there is (see `plan.steps_within`).
    test, tune: problems and responses of each.  lesson: likewise, with the steps of the verifier's training.
    temperatures: tried beside 1 for the base, on tune problems.  rates: learning rates that a sweep tries.
    block: problems measured at a time, of which a kill loses at most one.  rows: responses decoded at once.
    """

    epochs: int = 3
    sft_batch: int = 64
    sft_rate: float = 3e-4
    steps: int | None = None
    fewest_steps: int = 4
    most_steps: int = 96
    prompts_per_step: int = 32
    group_size: int = 64
    new_tokens: int = 200
    learning_rate: float = 2e-5
    chosen_rates: Mapping[str, float] = field(default_factory=dict)
    rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    sweep_steps: int = 12
    test: tuple[int, int] = (512, 128)
    tune: tuple[int, int] = (96, 64)
    lesson: tuple[int, int, int] = (1000, 16, 300)
    temperatures: tuple[float, ...] = (0.4, 0.6, 0.8, 1.2)
    block: int = 32
    rows: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "sft_batch", "prompts_per_step", "group_size", "new_tokens", "block", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, or None to plan them, got {self.steps}")
        if unknown := sorted(set(self.chosen_rates) - set(METHODS)):
            raise ValueError(
                f"learning rates must be of {', '.join(METHODS)}; got some of {', '.join(unknown)}"
            )

    @property
    def step_responses(self) -> int:
        """Responses of one training step."""
        return self.prompts_per_step * self.group_size


def tiny(study: Study) -> Study:
    """The shape of the study in minutes on a CPU, to see that every stage works; its numbers mean nothing."""
    return replace(
        study,
        epochs=2,
        sft_batch=16,
        sft_rate=3e-3,
        fewest_steps=1,
        most_steps=2,
        prompts_per_step=4,
        group_size=32,
        new_tokens=48,
        learning_rate=1e-4,
        rates=(1e-4, 3e-4),
        sweep_steps=1,
        test=(12, 32),
        tune=(8, 32),
        lesson=(32, 16, 4),
        temperatures=(0.6,),
        block=4,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """Where a study keeps its files, and how it speaks.

    output: weights, checkpoints and all responses.  home: what is small enough to be taken along.
    """

    study: Study
    output: Path
    home: Path
    say: Callable[[str], None] = print

    @property
    def base(self) -> Path:
        """The fine-tuned model that every method starts from."""
        return self.output / "base"

    def policy(self, name: str) -> Path:
        """Model, metrics and record of a training run."""
        return self.output / "policies" / name

    def model(self, name: str) -> Path:
        """The weights of a policy; raises ValueError where they are not there yet."""
        path = self.base if name == BASE else self.policy(name) / "model"
        if not (path / "config.json").exists():
            stage = "sft" if name == BASE else f"train --methods {name}"
            raise ValueError(f"{path} holds no model: run `python -m studies.real {stage}` first")
        return path
