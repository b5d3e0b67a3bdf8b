"""Loading a policy: a model with its tokenizer, from the package, a folder, or the hub."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PACKAGED = ("countdown-base",)


def load_policy(
    name: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> tuple[Any, Any]:
    """(model in evaluation mode, tokenizer) of a transformers folder, a hub name, or a model in the package.

    Raises ValueError that says what is missing.
    """
    where = policy_path(name)
    try:
        config = AutoConfig.from_pretrained(where)
    except Exception as fault:  # transformers raises many kinds
        if where == str(name) and not Path(where).exists():
            raise ValueError(
                f"model {str(name)!r} is neither a local folder nor to be had from the hub: {_first_line(fault)}"
            ) from fault
        raise ValueError(
            f"model {str(name)!r}: its config.json cannot be read: {_first_line(fault)}"
        ) from fault
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except Exception as fault:  # as above
        raise ValueError(
            f"model {str(name)!r}: no tokenizer could be loaded: {_first_line(fault)}"
        ) from fault
    if type(config) not in AutoModelForCausalLM._model_mapping or not getattr(config, "is_decoder", True):  # pyright: ignore
        raise ValueError(
            f"model {str(name)!r} is not a causal language model but of type {config.model_type!r}, "
            f"saved as {', '.join(config.architectures or ['nothing in particular'])}"
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore
            where, config=config, dtype=dtype or "auto", output_loading_info=True
        )
    except Exception as fault:  # as above
        raise ValueError(
            f"model {str(name)!r}: the model could not be loaded: {_first_line(fault)}"
        ) from fault
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"model {str(name)!r} lacks {len(missing)} of the weights of a causal language model, such as {missing[0]!r}"
        )
    if dtype is None and device is None and model.dtype in (torch.float16, torch.bfloat16):
        model = model.float() if not torch.cuda.is_available() else model
    return model.to(torch.device(device or "cpu")).eval(), tokenizer  # pyright: ignore


def policy_path(name: str | Path) -> str:
    """The folder of a model in the package, the path of a local one, or the hub name as it is.

    Raises ValueError where a local folder is named that does not exist or holds no model.
    """
    name = str(name)
    if name in PACKAGED:
        return str(files("bontune") / "assets" / name)
    path = Path(name).expanduser()
    begins_local = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    if not (path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or begins_local):
        return name
    if not path.exists():
        raise ValueError(f"model folder {name!r} does not exist")
    if not path.is_dir():
        raise ValueError(f"model {name!r} is not a folder")
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
