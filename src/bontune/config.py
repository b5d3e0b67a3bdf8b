"""Settings of a training run, written beside its results."""

from __future__ import annotations

from dataclasses import dataclass, field

from bontune.records import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class KLSchedule:
    """Coefficient of KL(policy || reference) in the loss, decaying geometrically from `start` to `end`.

    The paper uses 1 -> 0.001; 0 switches it off. It is estimated on `responses` random responses of each group.
    """

    start: float = 0.0
    end: float = 0.0
    responses: int = 1

    def __post_init__(self) -> None:
        if self.start < 0 or self.end < 0:
            raise ValueError(f"kl start and end must not be negative, got {self.start} and {self.end}")
        if self.start > 0 and not 0 < self.end <= self.start:
            raise ValueError(f"kl end must be above 0 and at most start = {self.start}, got {self.end}")
        if self.responses < 1:
            raise ValueError(f"kl responses must be at least 1, got {self.responses}")

    def at(self, step: int, steps: int) -> float:
        """The coefficient at one of `steps` steps."""
        if self.start == 0:
            return 0.0
        return self.start * (self.end / self.start) ** (step / max(1, steps - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How to train. What to train for is the objective; what to train on is the task."""

    steps: int = 48
    """Rollouts; each is followed by `updates_per_rollout` optimizer steps."""
    prompts_per_step: int = 64
    group_size: int = 64
    """M, responses drawn per prompt."""
    learning_rate: float = 1e-4
    schedule: str = "constant"
    """Any schedule name of transformers: constant, linear, cosine, constant_with_warmup, ..."""
    warmup_steps: int = 0
    optimizer: str = "AdamW"
    """The name of a class in torch.optim."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    updates_per_rollout: int = 1
    off_policy: str = "exact"
    """Weights of the second and later updates of a rollout: "exact" (unbiased in the ratios of the whole group)
    or "clipped" (each response's own ratio, clipped as in PPO; biased)."""
    ratio_clip: float = 0.5
    """Ratios of later updates are kept within 1/(1 + ratio_clip) and 1 + ratio_clip."""
    kl: KLSchedule = field(default_factory=KLSchedule)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    tokens_per_batch: int = 16_384
    """Response tokens of one forward and backward pass: bounds memory whatever the group size."""
    rows_per_batch: int = 4096
    """Responses decoded at once."""
    report_budgets: tuple[int, ...] = (1, 8, 32)
    """Budgets N whose pass@N is logged, where the group is that large."""

    def __post_init__(self) -> None:
        whole = ("steps", "prompts_per_step", "group_size", "updates_per_rollout")
        whole += ("tokens_per_batch", "rows_per_batch")
        for name in whole:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm", "ratio_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.off_policy not in ("exact", "clipped"):
            raise ValueError(f"off_policy must be 'exact' or 'clipped', got {self.off_policy!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How to train a scorer. Each step takes the responses of some prompts, right and wrong ones weighing the same."""

    steps: int = 300
    prompts_per_step: int = 32
    responses_per_prompt: int = 8
    """Different responses of a prompt that one step looks at, half of them right where there are enough."""
    learning_rate: float = 3e-4
    warmup_steps: int = 20
    weight_decay: float = 0.01
    held_out: float = 0.1
    """Share of the prompts that calibration is done on and training is not."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.prompts_per_step < 1:
            raise ValueError(
                f"steps and prompts_per_step must be at least 1, got {self.steps} and {self.prompts_per_step}"
            )
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out}")


class Stopped(RuntimeError):
    """Training was asked to stop, and can go on from its checkpoint."""
