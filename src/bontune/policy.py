"""Loading a policy: a model with its tokenizer, from the package, a folder, or the hub."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGED = ("countdown-base",)


def load_policy(
    name: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> tuple[Any, Any]:
    """(model in evaluation mode, tokenizer) of a transformers folder, a hub name, or a model in the package.

    Raises ValueError that says what is missing.
    """
    where = _resolve(str(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except Exception as fault:  # transformers raises many kinds
        raise ValueError(
            f"model {str(name)!r}: no tokenizer could be loaded: {_first_line(fault)}"
        ) from fault
    try:
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype or "auto")
    except Exception as fault:  # as above
        raise ValueError(f"model {str(name)!r}: not a causal language model: {_first_line(fault)}") from fault
    if dtype is None and device is None and model.dtype in (torch.float16, torch.bfloat16):
        model = model.float() if not torch.cuda.is_available() else model
    return model.to(torch.device(device or "cpu")).eval(), tokenizer  # pyright: ignore


def _resolve(name: str) -> str:
    if name in PACKAGED:
        return str(files("bontune") / "assets" / name)
    path = Path(name)
    looks_local = path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if not looks_local:
        return name
    path = path.expanduser()
    if not path.is_dir():
        raise ValueError(f"model folder {name!r} does not exist")
    missing = [f for f in ("config.json",) if not (path / f).exists()]
    if missing:
        hint = (
            " (it has a model/ folder: did you mean that?)"
            if (path / "model" / "config.json").exists()
            else ""
        )
        raise ValueError(f"model folder {name!r} has no {missing[0]}{hint}")
    return str(path)


def _first_line(fault: Exception) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(fault).__name__
