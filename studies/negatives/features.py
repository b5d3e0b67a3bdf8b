"""What a pretrained model's lower layers make of a response: frozen features, which a linear verifier reads.

For data whose model is too large to be trained on a CPU. One pass through the first `LAYERS` layers, the prompt shared by
its responses; of each response, the state of its last token beside the mean over its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bontune.models.attention import pack, shared_attention
from bontune.models.loading import forget_quantization, gguf_of

LAYERS = 8


class Features:
    """`features(prompt, texts)` is float32 [len(texts), 2 x width]: last state and mean state of each response.

    name: a causal model with bontune's shared attention (Llama, Qwen, ...): a folder or a GGUF file.
    """

    def __init__(self, name: str, layers: int = LAYERS) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder, gguf = gguf_of(name)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **gguf)
        self.model: Any = AutoModel.from_pretrained(folder, **gguf, dtype=torch.float32).eval()
        if gguf:
            forget_quantization(self.model)
        self.model.layers = self.model.layers[:layers]
        self.model.config.num_hidden_layers = layers

    @torch.no_grad()
    def __call__(self, prompt: str, texts: Sequence[str]) -> Tensor:
        """One row per text."""
        start = self.tokenizer(prompt)["input_ids"]
        rows = [torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.nn.functional.pad(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), (0, 1))
        owner = torch.zeros(len(rows), dtype=torch.int64)
        layout = pack(
            [start], owner, tokens, lengths + 1, device=torch.device("cpu")
        )  # leaves the last token out
        with shared_attention(self.model):
            out = self.model(
                input_ids=layout.ids, position_ids=layout.positions, layout=layout, use_cache=False
            ).last_hidden_state[0]
        parts = out[layout.prompt_tokens :].split(lengths.tolist())
        return torch.stack([torch.cat([part[-1], part.mean(0)]) for part in parts])
