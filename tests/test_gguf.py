"""Models of GGUF files: loaded by transformers, drawn from, saved as plain folders, refused with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import chat_model
from models import tiny_model

from bontune.config import Prompting, Sampling
from bontune.models.loading import load_policy, policy_path, save_policy
from bontune.models.prompting import encode, shown
from bontune.records import Prompt
from bontune.rollout import sample_groups
from bontune.verifiers.learned import scorer_from

gguf = pytest.importorskip("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path: Path, model: Any, tokenizer: Any, architecture: str = "llama") -> Path:
    """The model as a GGUF file, its weights in 32 bits."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    vocabulary = tokenizer.get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), "ab"]  # a merge, without which no file is read
    special = set(tokenizer.all_special_tokens)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        data = weight.float()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp has the two halves of each head interleaved
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = data.view(heads, 2, -1, data.shape[1]).transpose(1, 2).reshape(data.shape)
        writer.add_tensor(_named(name), data.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _named(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd",
        "model.norm.weight": "output_norm",
        "lm_head.weight": "output",
    }
    if name in whole:
        return f"{whole[name]}.weight"
    _, _, layer, *part, _ = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(part)]}.weight"


def test_a_gguf_file_is_loaded_drawn_from_and_saved_as_a_plain_folder(tmp_path: Path) -> None:
    _, tokenizer = chat_model()
    wanted = tiny_model(words=len(tokenizer) - 2, context=128, end=tokenizer.eos_token_id, head_dim=8)
    file = write_gguf(tmp_path / "tiny.gguf", wanted, tokenizer)
    ids = torch.tensor([[5, 9, 17, 30]])
    prompt = Prompt(id="a", text="6 * 7?")
    for name in (file, tmp_path):  # the file, or a folder with it alone
        model, found = load_policy(name)
        assert policy_path(name) == str(file)
        torch.testing.assert_close(model(ids).logits, wanted(ids).logits)
        (asked,) = shown([prompt], found, Prompting())
        assert asked.tokens == shown([prompt], tokenizer, Prompting())[0].tokens
    sampling = Sampling(max_new_tokens=4)
    (group,) = sample_groups(model, found, [asked], group_size=3, sampling=sampling, seed=0)
    assert group.told
    save_policy(model, found, tmp_path / "saved")
    again, kept = load_policy(tmp_path / "saved")
    torch.testing.assert_close(again(ids).logits, wanted(ids).logits)
    assert encode(again, kept, shown([prompt], kept, Prompting()), sampling) == [asked.tokens]
    scorer = scorer_from(file, prompting=Prompting())
    torch.testing.assert_close(scorer.model.model.norm.weight, wanted.model.norm.weight)
    scorer.save(tmp_path / "scorer")


def test_what_is_no_gguf_file_or_of_another_architecture_is_refused(tmp_path: Path) -> None:
    model, tokenizer = chat_model()
    file = write_gguf(tmp_path / "odd.gguf", model, tokenizer, architecture="rwkv6")
    with pytest.raises(
        ValueError, match=r"odd.gguf': this GGUF file cannot be read by transformers: .*rwkv6"
    ):
        load_policy(file)
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"torn.gguf': this GGUF file cannot be read by transformers"):
        load_policy(tmp_path / "torn.gguf")
    with pytest.raises(ValueError, match="has 2 GGUF files; name one"):
        load_policy(tmp_path)
