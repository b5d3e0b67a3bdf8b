"""Low-rank adapters, by PEFT. The only file that imports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bontune.config import ModelConfig

ADAPTER_CONFIG = "adapter_config.json"
FOUR_BITS = "trained-in-4-bits.txt"
_INSTALL = "pip install 'bontune[peft]'"


def add_adapters(model: Any, config: ModelConfig, base: str, seed: int) -> Any:
    """The model with new adapters, which alone are trained; they begin as zero, so nothing changes yet.

    base: where the weights come from, written beside saved adapters.  seed: of the adapters' first half, which is random.
    Raises ValueError where PEFT is missing or no layer has one of the names of `lora_targets`.
    """
    peft = _peft()
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
        target_modules=list(config.lora_targets) or "all-linear",
        lora_dropout=0.0,  # the policy that is updated is the one the responses were drawn from
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            found = peft.get_peft_model(model, settings)
        except ValueError as fault:
            raise ValueError(f"lora_targets = {config.lora_targets}: {fault}") from fault
    found.peft_config["default"].base_model_name_or_path = base
    return found.eval()


def base_of(folder: str | Path) -> str:
    """The name or folder of the weights that saved adapters belong to."""
    return str(_peft().PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)


def with_adapters(model: Any, folder: str | Path) -> Any:
    """The model with saved adapters: merged into its weights, beside them where those are in 4 bits."""
    found = _peft().PeftModel.from_pretrained(model, str(folder))
    return found if _in_four_bits(model) else found.merge_and_unload()


def trained_in_four_bits(folder: str | Path) -> bool:
    """Whether saved adapters were trained on weights in 4 bits, with which alone they are the policy that was tuned."""
    return (Path(folder) / FOUR_BITS).exists()


def _in_four_bits(model: Any) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False))


def has_adapters(model: Any) -> bool:
    """Whether the model is one of `add_adapters`."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


@dataclass(frozen=True, slots=True)
class WithoutAdapters:
    """What a model with adapters was before: the reference of a KL, without a second copy of the weights."""

    model: Any

    def __call__(self, **inputs: Any) -> Any:
        """The model's outputs with its adapters switched off."""
        with self.model.disable_adapter():
            return self.model(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def save_merged(model: Any, folder: Path) -> Any:
    """Save the adapters below `folder/adapter`; the plain model with them merged. Afterwards `model` is that one, too.

    Weights in 4 bits are not merged, which would round them again: the adapters are then saved in `folder` itself, and
    None is returned.
    """
    if _in_four_bits(model):
        model.save_pretrained(folder)
        (folder / FOUR_BITS).write_text("These adapters were trained on weights in 4 bits (NF4).\n")
        return None
    model.save_pretrained(folder / "adapter")
    return model.merge_and_unload()


def _peft() -> Any:
    try:
        import peft
    except ImportError as fault:
        raise ValueError(f"adapters need PEFT, which is not installed: {_INSTALL}") from fault
    return peft
