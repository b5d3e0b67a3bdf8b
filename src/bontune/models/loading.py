"""Loading and saving a policy: a model with its tokenizer, from the package, a folder, or the hub."""

from __future__ import annotations

import os
from contextlib import nullcontext, redirect_stderr
from importlib.resources import files
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from bontune.config import ModelConfig
from bontune.models.adapters import (
    ADAPTER_CONFIG,
    add_adapters,
    base_of,
    has_adapters,
    save_merged,
    trained_in_four_bits,
    with_adapters,
)
from bontune.models.compress.owq import OWQ_CONFIG, base_of_owq, has_owq, merge_owq, save_owq, with_owq

PACKAGED = ("countdown-base", "programs-base", "rules-base")


def load_policy(
    name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization: Any = None,
) -> tuple[Any, Any]:
    """(model in evaluation mode, tokenizer) of a transformers folder, a hub name, or a model in the package.

    A folder of PEFT adapters, or of layers quantised by OWQ, is loaded with the weights it names, and merged; the weights
    of a GGUF file are put back into numbers. quantization: as transformers takes it.
    Raises ValueError that says what is missing.
    """
    where = policy_path(name)
    if (Path(where) / ADAPTER_CONFIG).is_file():
        return _load_adapted(where, dtype=dtype, device=device, quantization=quantization)
    if (Path(where) / OWQ_CONFIG).is_file():
        model, tokenizer = load_policy(
            base_of_owq(where), dtype=dtype, device=device, quantization=quantization
        )
        return merge_owq(with_owq(model, where)), tokenizer
    folder, gguf = gguf_of(where)
    config, tokenizer = _config_of(name, folder, gguf), load_tokenizer(name)
    if type(config) not in AutoModelForCausalLM._model_mapping or not getattr(config, "is_decoder", True):  # pyright: ignore
        raise ValueError(
            f"model {str(name)!r} is not a causal language model but of type {config.model_type!r}, "
            f"saved as {', '.join(config.architectures or ['nothing in particular'])}"
        )
    how = {} if quantization is None else {"quantization_config": quantization}
    model = _weights_of(name, folder, {"config": config, **gguf}, dtype=dtype or "auto", **how)
    if dtype is None and model.dtype in (torch.float16, torch.bfloat16):
        model = model.float() if not torch.cuda.is_available() else model
    if quantization is None:  # otherwise it is where it must be
        model = model.to(torch.device(device or own_device()))  # pyright: ignore
    return model.eval(), tokenizer


def _weights_of(name: str | Path, folder: str, named: dict[str, Any], **how: Any) -> Any:
    """The causal language model of a folder, or of the GGUF file in it that `named` names, with all of its weights."""
    gguf = "gguf_file" in named
    try:
        with redirect_stderr(StringIO()) if gguf else nullcontext():  # bars of tensors that are de-quantised
            model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore
                folder, **named, **how, output_loading_info=True
            )
    except Exception as fault:  # transformers raises many kinds
        raise ValueError(
            f"model {str(name)!r}: the model could not be loaded: {_first_line(fault)}"
        ) from fault
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"model {str(name)!r} lacks {len(missing)} of the weights of a causal language model, such as {missing[0]!r}"
        )
    if gguf:
        forget_quantization(model)
    return model


def forget_quantization(model: Any) -> None:
    """The weights of a GGUF file are plain numbers once they are loaded, and must be saved as such."""
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model, as `load_policy`. Raises ValueError where there is none."""
    folder, gguf = gguf_of(policy_path(name))
    try:
        return AutoTokenizer.from_pretrained(folder, **gguf)
    except Exception as fault:  # transformers raises many kinds
        raise ValueError(
            f"model {str(name)!r}: no tokenizer could be loaded: {_first_line(fault)}"
        ) from fault


def _config_of(name: str | Path, folder: str, gguf: dict[str, str]) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, **gguf)
    except Exception as fault:  # transformers raises many kinds
        if folder == str(name) and not Path(folder).exists():
            raise ValueError(
                f"model {str(name)!r} is neither a local folder nor to be had from the hub: {_first_line(fault)}"
            ) from fault
        if gguf and find_spec("gguf") is None:
            raise ValueError(
                f"model {str(name)!r} is a GGUF file, which needs gguf: pip install 'bontune[gguf]'"
            ) from fault
        what = "this GGUF file cannot be read by transformers" if gguf else "its config.json cannot be read"
        raise ValueError(f"model {str(name)!r}: {what}: {_first_line(fault)}") from fault


def gguf_of(where: str) -> tuple[str, dict[str, str]]:
    """(folder or hub name, {"gguf_file": its name} of a GGUF file, else nothing), as `from_pretrained` takes them."""
    path = Path(where)
    return (str(path.parent), {"gguf_file": path.name}) if path.suffix.lower() == ".gguf" else (where, {})


def as_dtype(name: str) -> torch.dtype | None:
    """What `load_policy` takes for a precision by its name; None for "auto"."""
    return None if name == "auto" else getattr(torch, name)


def as_device(name: str | None) -> torch.device | None:
    """The device of a name such as "cuda:1" or "cpu"; None for this process's own.

    Raises ValueError where it cannot be used.
    """
    if name is None:
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as fault:
        raise ValueError(f"device {name!r} cannot be used here: {_first_line(fault)}") from fault


def own_device() -> torch.device:
    """This process's GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def load_trainable(
    name: str | Path, config: ModelConfig, *, seed: int = 0, device: str | None = None
) -> tuple[Any, Any]:
    """(model, tokenizer) as `load_policy`, with the adapters, precision and checkpointing that `config` asks for.

    Few bits and zeros are not made here, as they need text to be measured on: `add_owq`, `prune` of `models.compress`.
    seed: of new adapters.  device: this process's own where None.
    Raises ValueError where a library that `config` needs is not installed.
    """
    quantization = _four_bits() if config.load_in_4bit else None
    model, tokenizer = load_policy(
        name, dtype=as_dtype(config.dtype), device=device, quantization=quantization
    )
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ValueError(f"gradient_checkpointing: models of type {model.config.model_type!r} have none")
        new = getattr(model, "activation_checkpointing_enable", None)  # since transformers 5.24
        (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if config.lora_rank:
        model = add_adapters(model, config, policy_path(name), seed)
    return model, tokenizer


def save_policy(model: Any, tokenizer: Any, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Write a plain transformers folder. Adapters are merged, and kept by themselves in `folder/adapter`; so are layers
    quantised by OWQ, in `folder/owq`.

    After that a model with adapters is no longer to be trained. Adapters of a model in 4 bits stay adapters.
    state: the whole of its weights, where they are not all in this process.
    """
    if has_adapters(model):
        model = save_merged(model, folder)
        if model is not None:
            tokenizer.save_pretrained(folder / "adapter")
    elif has_owq(model):
        save_owq(model, folder / "owq")
        model = merge_owq(model)
    if model is not None:
        model.save_pretrained(folder, **({} if state is None else {"state_dict": state}))
    tokenizer.save_pretrained(folder)


def _load_adapted(where: str, **how: Any) -> tuple[Any, Any]:
    """(weights with the adapters of a folder merged, tokenizer: the folder's own where it has one)."""
    if how["quantization"] is None and trained_in_four_bits(where):
        how["quantization"] = _four_bits()
    model, tokenizer = load_policy(base_of(where), **how)
    if (Path(where) / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(where)
    return with_adapters(model, tokenizer, where).eval(), tokenizer


def _four_bits() -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            "load_in_4bit needs bitsandbytes, which is not installed: pip install 'bontune[qlora]'. It is made for "
            "CUDA GPUs; without one, leave load_in_4bit out"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def policy_path(name: str | Path) -> str:
    """The folder of a model in the package, the path of a local one or of its GGUF file, or the hub name as it is.

    Raises ValueError where a local folder is named that does not exist or holds no model.
    """
    name = str(name)
    if name in PACKAGED:
        return str(files("bontune") / "demo" / "assets" / name)
    path = Path(name).expanduser()
    begins_local = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    if not (path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or begins_local):
        return name
    if not path.exists():
        raise ValueError(f"model folder {name!r} does not exist")
    if path.is_file() and path.suffix.lower() == ".gguf":
        return str(path)
    if not path.is_dir():
        raise ValueError(f"model {name!r} is not a folder, and no GGUF file")
    if not any((path / name).exists() for name in ("config.json", ADAPTER_CONFIG, OWQ_CONFIG)):
        found = sorted(path.glob("*.gguf"))
        if len(found) == 1:
            return str(found[0])
        if found:
            raise ValueError(
                f"model folder {name!r} has {len(found)} GGUF files; name one, such as {found[0]}"
            )
        hint = (
            " (it has a model/ folder: did you mean that?)"
            if (path / "model" / "config.json").exists()
            else ""
        )
        raise ValueError(f"model folder {name!r} has no config.json{hint}")
    return str(path)


def _first_line(fault: Exception) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(fault).__name__
