"""Settings, written beside the results they led to; and objects of the user's own, by their name.

Nothing heavy is imported here: the command line is parsed with these.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are drawn. Log-probabilities everywhere are those of this very distribution."""

    temperature: float = 1.0
    """Above 0; divides the logits."""
    top_p: float = 1.0
    """In (0, 1]: draw from the most probable tokens that together reach this probability."""
    top_k: int = 0
    """Draw from so many of the most probable tokens; 0 switches it off."""
    max_new_tokens: int = 32
    """Tokens of a response at most. 0: what the model's context leaves after the longest prompt, at most 512; 32 for the
    models in the package and what is compared with them; as many as it was trained with for the model of a run."""
    stop: tuple[str, ...] = ()
    """Strings that end a response; they are not part of its text."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a finite number above 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive, got {self.top_k}")
        if self.max_new_tokens < 0:
            raise ValueError(
                f"max_new_tokens must be at least 1, or 0 for what the model allows; got {self.max_new_tokens}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompting:
    """What the model reads for a prompt, and what sets its reasoning apart. `bontune.models.prompting` makes token ids of
    it, the same ones everywhere."""

    chat: Literal["auto", "on", "off"] = "auto"
    """Whether the tokenizer's chat template is put around the prompt; auto: where it has one."""
    system: str | None = None
    """The system message of each conversation that has none of its own. Needs a chat template."""
    prompt_template: str | None = None
    """What the prompt, or the last message of the user, is put into, e.g. "Question: {prompt}\\nAnswer:"."""
    template_args: tuple[str, ...] = ()
    """What the chat template is told besides: KEY=VALUE, the value as in JSON, such as enable_thinking=false; or one
    JSON object."""
    reply_start: str | None = None
    """How each response begins: the model goes on from it, e.g. "The answer is ". It belongs to the prompt, and is not
    part of the response."""
    reasoning_markers: tuple[str, ...] = field(default=(), repr=False)
    """What opens and what closes the model's reasoning, as "OPEN,CLOSE", where that is none of the usual tags such as
    <think>,</think>: what stands between them is no answer."""

    def __post_init__(self) -> None:
        if self.chat not in ("auto", "on", "off"):
            raise ValueError(f"chat must be auto, on or off, got {self.chat!r}")
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise ValueError(
                f"prompt_template must hold {{prompt}} where the prompt goes, got {self.prompt_template!r}"
            )
        for name in ("template_args", "reasoning_markers"):  # lists, where read from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self.arguments()
        self.markers()
        for name in ("system", "template_args"):
            if self.chat == "off" and getattr(self, name):
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} goes into a chat template, and chat is off"
                )

    @property
    def plain(self) -> bool:
        """Whether the model reads the text of a prompt as it is."""
        return replace(self, reasoning_markers=()) == PLAIN

    def markers(self) -> tuple[tuple[str, str], ...]:
        """The pairs of `reasoning_markers`."""
        pairs = [tuple(mark.strip() for mark in text.split(",")) for text in self.reasoning_markers]
        for text, pair in zip(self.reasoning_markers, pairs, strict=True):
            if len(pair) != 2 or not all(pair):
                raise ValueError(
                    f'reasoning_markers must be like "<a>,</a>", what opens and closes; got {text!r}'
                )
        return tuple((pair[0], pair[1]) for pair in pairs)

    def arguments(self) -> dict[str, Any]:
        """What the chat template is told besides."""
        found: dict[str, Any] = {}
        for text in self.template_args:
            name, equals, value = text.partition("=")
            if text.lstrip().startswith("{"):
                given = _json(text, None)
                if not isinstance(given, dict):
                    raise ValueError(f"template_args must be KEY=VALUE or a JSON object, got {text!r}")
                found |= given
            elif not name or not equals:
                raise ValueError(f"template_args must be KEY=VALUE or a JSON object, got {text!r}")
            else:
                found[name] = _json(value, value)
        return found


PLAIN = Prompting(chat="off")
"""The text as it is; what runs of bontune 0.1 mean, which say nothing of prompting."""


def _json(text: str, default: Any) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return default


@dataclass(frozen=True, slots=True, kw_only=True)
class KLSchedule:
    """Coefficient of KL(policy || reference) in the loss, decaying geometrically from `start` to `end`.

    The paper uses 1 -> 0.001; 0 switches it off. It is estimated on `responses` random responses of each group.
    """

    start: float = 0.0
    """Coefficient of KL(policy || reference) at the first step; 0 switches it off."""
    end: float = 0.0
    """Coefficient at the last step; it decays geometrically."""
    responses: int = 1
    """Random responses of each group that the KL is estimated on."""

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
class Prices:
    """What answering a prompt is paid for, in a unit of the user's own. Raises ValueError on a price below 0."""

    token: float = 0.0
    """Price of a token of a response, in a unit of yours: dollars, seconds of a GPU, or 1 to count tokens."""
    prompt: float = 0.0
    """Price of a token of the prompt, in the same unit."""
    prompt_once: bool = True
    """Pay a prompt once, as engines ask for that share it among its responses; or once for every response."""
    verifier: float = 0.0
    """Price of a second of the verifier, which judges every response that is drawn; a vote needs none."""

    def __post_init__(self) -> None:
        for name in ("token", "prompt", "verifier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"price {name} must be a finite number of at least 0, got {value}")

    @property
    def free(self) -> bool:
        """Whether nothing has a price."""
        return not (self.token or self.prompt or self.verifier)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a model that is drawn from is held, and in which precision."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the model's weights; auto: as they were saved, but float32 where there is no GPU."""
    device: str | None = None
    """Where the model is held, such as cuda:1 or cpu; by default this process's GPU where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """How a policy is loaded to be trained, and which of its weights are trained."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; auto: as they were saved, but float32 where there is no GPU. Training all weights wants float32,
    with `--mixed-precision bf16` for speed: in bfloat16, small updates round to nothing."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank (PEFT) and leave the weights alone; 0 trains all weights."""
    lora_alpha: float | None = None
    """The adapters count alpha / rank; twice the rank by default."""
    lora_targets: tuple[str, ...] = ()
    """The linear layers that get adapters, by the end of their names, such as q_proj v_proj; all by default."""
    load_in_4bit: bool = False
    """QLoRA: hold the weights that are not trained in 4 bits (NF4, by bitsandbytes). Needs `lora_rank`."""
    adapter: Literal["lora", "owq"] = "lora"
    """lora: low-rank adapters, where `lora_rank` is set. owq: linear layers in few `bits` by GPTQ, of which only the
    columns that rounding would hurt most stay in 16 bits and are trained (arXiv:2306.02272); served as trained."""
    bits: int | None = None
    """Of the columns that are not trained, with `adapter` owq: 2 to 8."""
    weak_bits: float = 0.1
    """What the trained columns add to the mean bits of a weight, with `adapter` owq: it decides how many there are."""
    sparsity: float = 0.0
    """Set this share of the weights in linear layers to zero (SparseGPT, arXiv:2301.00774) and train the others; 0 prunes
    none. A model that was pruned before keeps its zeros."""
    pattern: str | None = None
    """Which are zero: 2:4, two of each four neighbours, with `sparsity` 0.5. By default, wherever it costs least."""
    calibration_prompts: int = 128
    """Training prompts, with their references where the task has them, on which `adapter` owq and `sparsity` measure what
    rounding and zeros cost."""
    gradient_checkpointing: bool = False
    """Compute the layers again in the backward pass instead of keeping what they computed: less memory, more time."""

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must be 0 (off) or positive, got {self.lora_rank}")
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise ValueError(f"lora_alpha must be above 0, got {self.lora_alpha}")
        given = {"lora_alpha": self.lora_alpha, "lora_targets": self.lora_targets}
        for name, value in (given | {"load_in_4bit": self.load_in_4bit}).items():
            if value and self.lora_rank == 0:
                raise ValueError(f"{name} = {value} needs lora_rank to be at least 1")
        self._check_compression()

    def _check_compression(self) -> None:
        """Raise ValueError where bits and zeros do not go together."""
        owq = self.adapter == "owq"
        if owq and self.bits is None:
            raise ValueError("adapter = 'owq' needs bits, a whole number from 2 to 8")
        if not owq and self.bits is not None:
            raise ValueError(f"bits = {self.bits} needs adapter = 'owq'")
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be a whole number from 2 to 8, got {self.bits}")
        if owq and not 0 < self.weak_bits <= 16 - (self.bits or 0):
            raise ValueError(f"weak_bits must be above 0 and at most 16 - bits, got {self.weak_bits}")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be at least 0 and below 1, got {self.sparsity}")
        if self.pattern is not None and (self.pattern != "2:4" or self.sparsity != 0.5):
            raise ValueError(
                f"pattern must be 2:4, with sparsity = 0.5, got pattern = {self.pattern!r} and {self.sparsity}"
            )
        if self.calibration_prompts < 1:
            raise ValueError(f"calibration_prompts must be at least 1, got {self.calibration_prompts}")
        chosen = {"lora_rank": self.lora_rank, "adapter = 'owq'": owq, "sparsity": self.sparsity}
        if len(together := [name for name, value in chosen.items() if value]) > 1:
            raise ValueError(
                f"{' and '.join(together)} exclude each other: what is merged would be neither low in bits nor sparse"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How to train. What to train for is the objective; what to train on is the task."""

    steps: int = 48
    """Rollouts; each is followed by `updates_per_rollout` optimizer steps."""
    prompts_per_step: int = 64
    """Prompts of a rollout; a multiple of the number of processes."""
    group_size: int = 64
    """M, responses drawn per prompt."""
    learning_rate: float = 1e-4
    """What matters most: compare objectives each at its own best one. The recipes for large models have 1e-6 to 1e-5."""
    schedule: str = "constant"
    """Any schedule name of transformers: constant, linear, cosine, constant_with_warmup, ..."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises from 0, for schedules that have a warm-up."""
    optimizer: str = "AdamW"
    """The name of a class in torch.optim."""
    weight_decay: float = 0.0
    """Of the optimizer, where it has one."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""
    updates_per_rollout: int = 1
    """Optimizer steps on each rollout; from the second on, weights are `off_policy`'s."""
    off_policy: str = "exact"
    """Weights of the second and later updates of a rollout: "exact" (unbiased in the ratios of the whole group)
    or "clipped" (each response's own ratio, clipped as in PPO; biased)."""
    ratio_clip: float = 0.5
    """Ratios of later updates are kept within 1/(1 + ratio_clip) and 1 + ratio_clip."""
    rollouts_ahead: bool = False
    """Draw the responses of each step before the update of the step before it, which an engine with weights of its own
    does meanwhile. They are then of the policy before: weighed by `off_policy`, as later updates of a rollout are."""
    ahead_limit: float = 0.5
    """With rollouts ahead: draw anew where the policy has moved further since than this mean |log ratio| of whole
    responses, in nats."""
    kl: KLSchedule = field(default_factory=KLSchedule)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """Of the order of prompts, the responses, and new adapters."""
    mixed_precision: Literal["no", "bf16"] | None = None
    """bf16: multiply in bfloat16 and keep float32 weights. Left out: as `accelerate launch` says, else no."""
    shard: bool = False
    """Split parameters, gradients and optimizer state over the processes of the run (FSDP 2), for models that one device
    cannot train. While responses are drawn, each process holds the whole parameters."""
    tokens_per_batch: int = 16_384
    """Response tokens of one forward and backward pass: bounds memory whatever the group size."""
    rows_per_batch: int = 4096
    """Responses decoded at once."""
    undecided_limit: float = 0.5
    """Stop, with the reasons, where more than this share of the responses of three steps could not be decided, or more
    than a tenth of it and not at random: whole prompts, or one fault of the verifier's own. 1 never stops."""
    report_budgets: tuple[int, ...] = (1, 8, 32)
    """Budgets N whose pass@N is logged, where the group is that large."""

    def __post_init__(self) -> None:
        whole = ("steps", "prompts_per_step", "group_size", "updates_per_rollout")
        whole += ("tokens_per_batch", "rows_per_batch")
        for name in whole:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm", "ratio_clip", "ahead_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 < self.undecided_limit <= 1:
            raise ValueError(f"undecided_limit must be above 0 and at most 1, got {self.undecided_limit}")
        if self.off_policy not in ("exact", "clipped"):
            raise ValueError(f"off_policy must be 'exact' or 'clipped', got {self.off_policy!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """What is measured on held-out prompts while a policy trains, and which policy is saved by it."""

    eval_every: int | None = None
    """Measure on held-out prompts before the first step, after every so many, and after the last: eval.jsonl, and the
    report. The difference to the start is paired by prompt."""
    eval_prompts: int = 64
    """How many of the task's tune split, always the same ones."""
    eval_group_size: int | None = None
    """Responses to each of them; --group-size by default."""
    keep: Literal["last", "best"] = "last"
    """Which policy is saved: the last, or the one whose strategy had the highest value on the held-out prompts. That
    value then flatters it: compare on the test split."""

    def __post_init__(self) -> None:
        for name in ("eval_every", "eval_prompts", "eval_group_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.keep == "best" and self.eval_every is None:
            raise ValueError("keep = 'best' is chosen by what is measured: set eval_every, too")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How to train a scorer. Each step takes the responses of some prompts, right and wrong ones weighing the same."""

    steps: int = 300
    """Optimizer steps."""
    prompts_per_step: int = 32
    """Prompts whose responses one step looks at."""
    responses_per_prompt: int = 8
    """Different responses of a prompt that one step looks at, half of them right where there are enough."""
    learning_rate: float = 3e-4
    warmup_steps: int = 20
    weight_decay: float = 0.01
    held_out: float = 0.1
    """Share of the prompts that calibration is done on and training is not."""
    hard_prompts: float = 0.0
    """Share of each step's prompts that are drawn in proportion to the verifier's own last loss on them; the others come
    in turn."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.prompts_per_step < 1:
            raise ValueError(
                f"steps and prompts_per_step must be at least 1, got {self.steps} and {self.prompts_per_step}"
            )
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out}")
        if not 0 <= self.hard_prompts < 1:
            raise ValueError(f"hard_prompts must be at least 0 and below 1, got {self.hard_prompts}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may ask for, and all of them together. Raises ValueError on a number below 1.

    body: bytes of a request.  prompt: characters of a prompt.  answers: of a request, its prompts times its n.
    budget: N of a request that names its own.  waiting: requests being answered or waiting for it; more get status 429.
    rows: responses of all requests that a model in this process draws at once, which is what bounds its memory.
    at_once: requests judged at the same time and, where a server elsewhere draws, drawn.
    seconds: of a request, its waiting included; then it gets status 504.  drain: seconds that requests under way have
    to end when the server is asked to.
    """

    body: int = 1_000_000
    prompt: int = 32_000
    answers: int = 8
    budget: int = 128
    waiting: int = 16
    rows: int = 512
    at_once: int = 1
    seconds: int = 600
    drain: int = 30

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"limit {name} must be at least 1, got {getattr(self, name)}")


class Stopped(RuntimeError):
    """Training was asked to stop, and can go on from its checkpoint."""


def load_object(spec: str, what: str) -> Any:
    """The object that `module:attribute` names; `what` is the argument it was given for."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{what} must be given as module:attribute, got {spec!r}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as fault:
        if fault.name != module_name.partition(".")[0] and fault.name != module_name:
            raise ValueError(f"{what}: importing {module_name!r} failed: {fault}") from fault
        raise ValueError(
            f"{what}: no module {module_name!r} (looked on the Python path and in {here})"
        ) from fault
    except (Exception, SystemExit) as fault:  # a user's module may raise anything
        raise ValueError(
            f"{what}: importing {module_name!r} failed: {type(fault).__name__}: {fault}"
        ) from fault
    try:
        return attrgetter(attribute)(module)
    except AttributeError as fault:
        near = difflib.get_close_matches(attribute, vars(module))
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what}: module {module_name!r} has no {attribute!r}{hint}") from fault


_NAMED: dict[
    int, tuple[Any, str]
] = {}  # by id; the object beside its name lives as long, so no id comes again


def remember(found: Any, spec: str) -> None:
    """From now on `spec_of(found)` is this spec, by which it is found again in another process."""
    _NAMED[id(found)] = found, spec


def spec_of(found: Any) -> str:
    """What is written of an objective or a strategy: the name it was given by, else its repr, which is Python again.

    A function, or an object without a repr of its own, is module:name, with the plain values it holds.
    """
    if id(found) in _NAMED:
        return _NAMED[id(found)][1]
    if hasattr(found, "__qualname__"):
        return f"{found.__module__}:{found.__qualname__}"
    kind = type(found)
    if kind.__repr__ is not object.__repr__:
        return repr(found)
    plain = (bool, int, float, str, tuple, type(None))
    held = [f"{name}={value!r}" for name, value in vars(found).items() if isinstance(value, plain)]
    return f"{kind.__module__}:{kind.__qualname__}" + (f"({', '.join(held)})" if held else "")


def named_in(found: Any) -> ModuleType | None:
    """The module that something was named by, which may be another than the one that defines its class."""
    return sys.modules.get(_NAMED[id(found)][1].partition(":")[0]) if id(found) in _NAMED else None


def source_of(found: Any) -> bytes:
    """The file of a module, or that defines a function, a class, or the class of an object.

    The code alone of a function that is in no file.
    """
    known = found if hasattr(found, "__qualname__") or inspect.ismodule(found) else type(found)
    try:
        return Path(inspect.getsourcefile(known) or "").read_bytes()
    except (OSError, TypeError):
        code = getattr(known, "__code__", None)
        return b"" if code is None else code.co_code + repr(code.co_consts).encode()


def sources_of(found: Any) -> dict[str, str]:
    """{module: hash of its source} of all that an objective, strategy or task is made of and that is not bontune's.

    That are the module it was named by, its class, and those of what it holds. What they import is not seen.
    """
    known: dict[str, Any] = {}
    for module, item in _parts(found):
        if module.partition(".")[0] not in ("bontune", "builtins", "torch"):
            known.setdefault(module, item)
    return {name: hashlib.sha256(source_of(item)).hexdigest()[:12] for name, item in sorted(known.items())}


def _parts(found: Any) -> Iterator[tuple[str, Any]]:
    """(module, what is defined there) of an object and of what it holds."""
    if isinstance(found, tuple | list):
        for item in found:
            yield from _parts(item)
        return
    if (module := named_in(found)) is not None:
        yield module.__name__, module
    known = found if hasattr(found, "__qualname__") else type(found)
    yield known.__module__, known
    if is_dataclass(found) and not isinstance(found, type):
        for each in fields(found):
            yield from _parts(getattr(found, each.name))
