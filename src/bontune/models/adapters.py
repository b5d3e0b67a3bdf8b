"""Low-rank adapters, by PEFT. The only file that imports it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
        target_modules=list(config.lora_targets) or "all-linear",
        lora_dropout=0.0,  # the policy that is updated is the one the responses were drawn from
    )
    with torch.random.fork_rng(), _without_a_word():
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


def with_adapters(model: Any, tokenizer: Any, folder: str | Path) -> Any:
    """The model with saved adapters: merged into its weights, beside them where those are in 4 bits.

    tokenizer: the adapters'. The embedding gets as many rows as it had where they were trained.
    Raises ValueError where rows for added tokens were not saved, or where the adapters cannot be merged.
    """
    rows = _rows(model, tokenizer, folder)
    if rows != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)  # rows that are used come with the adapters
    with _without_a_word():
        found = _peft().PeftModel.from_pretrained(model, str(folder))
    return found if _in_four_bits(model) else _merged(found)


def _rows(model: Any, tokenizer: Any, folder: str | Path) -> int:
    """Rows of the embedding that adapters were trained with, which may have had added tokens."""
    peft, present = _peft(), model.get_input_embeddings().num_embeddings
    names = {module: name for name, module in model.named_modules()}
    embedding, head = names[model.get_input_embeddings()], names.get(model.get_output_embeddings())
    saved = peft.load_peft_weights(str(folder), device="cpu")
    if peft.PeftConfig.from_pretrained(str(folder)).trainable_token_indices:
        return max(present, len(tokenizer))

    def size(end: str, axis: int = 0) -> int | None:
        return next((v.shape[axis] for name, v in saved.items() if name.endswith(f".{end}")), None)

    matrices = {
        name: size(f"{name}.weight") or size(f"{name}.base_layer.weight") for name in (embedding, head)
    }
    told = (*matrices.values(), size(f"{embedding}.lora_embedding_A", 1), size(f"{head}.lora_B.weight"))
    rows = next((found for found in told if found is not None), present)
    lost = [name for name, saved_rows in matrices.items() if saved_rows is None and name is not None]
    enough = not lost or (_are_tied(model) and len(lost) < len(matrices))
    if rows > present and not enough:
        raise ValueError(
            f"adapters {str(folder)!r} were trained with {rows} tokens, the base has {present}, and the rows of "
            f"{', '.join(lost)} for the added ones were not saved with them: train again with modules_to_save="
            f"{[name.rpartition('.')[2] for name in matrices if name]} in PEFT's LoraConfig"
        )
    return rows


def _merged(model: Any) -> Any:
    """The plain model with its adapters merged, without loss. Raises ValueError where PEFT cannot.

    A head that is the embedding, too, becomes a matrix of its own where they now differ: adapters change one of their
    uses and not the other, which one matrix cannot say.
    """
    ends = model.get_output_embeddings(), model.get_input_embeddings()
    tied = _are_tied(model)
    if tied and any(_base(module) is not module for module in ends):
        head = _base(ends[0])
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    try:
        with _without_a_word():
            plain = model.merge_and_unload()
    except RuntimeError as fault:
        if "lora_bias" not in str(fault):
            raise
        raise ValueError(
            "adapters with lora_bias=True cannot be merged into layers without a bias, and bontune uses merged ones: "
            "train them with lora_bias=False"
        ) from fault
    if tied:
        head, embedding = plain.get_output_embeddings(), plain.get_input_embeddings()
        if same := torch.equal(head.weight, embedding.weight):
            head.weight = embedding.weight
        _say_tied(plain, same)
    return plain


def _are_tied(model: Any) -> bool:
    """Whether the head's matrix is the embedding's."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and _base(head).weight is _base(embedding).weight


def _base(module: Any) -> Any:
    """What PEFT has put something around."""
    while True:
        inner = getattr(module, "original_module", None) or getattr(module, "base_layer", None)
        if inner is None:
            return module
        module = inner


def _say_tied(model: Any, tied: bool) -> None:
    """In its config, by which it is saved and loaded."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied
    if hasattr(model, "all_tied_weights_keys"):  # since transformers 5
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


@contextmanager
def _without_a_word() -> Iterator[None]:
    """Without PEFT's warnings that adapters on a tied matrix may be merged wrongly, which here they are not, and that it
    takes the vocabulary for unchanged where the base is a GGUF file or on the hub, which it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Could not find a config file in .* vocabulary was not modified"
        )
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
        yield


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
        with _without_a_word():
            model.save_pretrained(folder)
        (folder / FOUR_BITS).write_text("These adapters were trained on weights in 4 bits (NF4).\n")
        return None
    with _without_a_word():
        model.save_pretrained(folder / "adapter")
    return _merged(model)


def _peft() -> Any:
    try:
        import peft
    except ImportError as fault:
        raise ValueError(f"adapters need PEFT, which is not installed: {_INSTALL}") from fault
    return peft
