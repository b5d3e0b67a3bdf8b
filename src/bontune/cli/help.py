"""The help of `bontune train`, in groups: what everyone needs first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Annotated, Any, get_origin, get_type_hints

import tyro

from bontune.cli.arguments import Train

COMMON = (
    "model", "task", "verifier", "scorer", "objective",
    "steps", "prompts_per_step", "group_size", "learning_rate", "output",
)  # fmt: skip
GROUPS: Mapping[type, Mapping[str, tuple[str, ...]]] = {
    Train: {
        "common": COMMON,
        "response": (
            "chat", "system", "prompt_template", "template_args", "reply_start", "sampling.*", "engine", "rows_per_batch",
        ),
        "learning": (
            "schedule", "warmup_steps", "optimizer", "weight_decay", "max_grad_norm", "updates_per_rollout", "off_policy",
            "ratio_clip", "kl.*", "hardest_share", "refresh_every", "mixed_precision", "shard", "tokens_per_batch",
        ),
        "weight": (
            "dtype", "lora_*", "load_in_4bit", "gradient_checkpointing", "adapter", "bits", "weak_bits", "sparsity",
            "pattern", "calibration_prompts",
        ),
        "run": ("*",),
    }
}  # fmt: skip
"""Of a command: {title: names or patterns of its options}, in the order in which they are shown."""


def grouped(command: type) -> type:
    """A stand-in for a command whose help shows the same options in groups; itself where it has none."""
    if command not in GROUPS:
        return command
    left = dict(_options(command))
    parts: list[tuple[str, Any, Any]] = []
    for title, patterns in GROUPS[command].items():
        chosen = [name for pattern in patterns for name in left if fnmatch(name, pattern)]
        options = [(name.replace(".", "__"), *left.pop(name)) for name in dict.fromkeys(chosen)]
        group = dataclasses.make_dataclass(title, options, frozen=True, kw_only=True)
        group.__doc__ = ""
        parts.append(
            (title, Annotated[group, tyro.conf.OmitArgPrefixes], dataclasses.field(default_factory=group))
        )
    view = dataclasses.make_dataclass(command.__name__, parts, frozen=True, kw_only=True)
    view.__doc__ = command.__doc__
    return view


def _options(kind: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(name, (type, field)) of each option, those of nested settings by their full name."""
    hints = get_type_hints(kind, include_extras=True)
    for option in dataclasses.fields(kind):
        hint = hints[option.name]
        marks = [
            mark for mark in getattr(hint, "__metadata__", ()) if getattr(mark, "name", None) is not None
        ]
        own = marks[0].name if marks else option.name
        inner = hint.__origin__ if get_origin(hint) is Annotated else hint
        if dataclasses.is_dataclass(inner):
            yield from _options(inner, f"{prefix}{own}." if own else prefix)
            continue
        name = f"{prefix}{own}"
        shown = Annotated[hint, tyro.conf.arg(name=name, help=option.metadata.get("help"))]
        yield name, (shown, dataclasses.field(default=option.default, metadata=option.metadata))
