"""Rollouts by vLLM in this process, with the weights of the policy in training pushed into it before each rollout.

One process, one device. Weights go through the worker's `reload_weights`, which restores each layer to its state before
vLLM packed it: vLLM 0.2x and later. Whether that works depends on version, backend and model, so it is tried before
anything is trained, with weights changed on purpose, and log-probabilities are compared with the policy's own in every
rollout. What does not pass is refused: a policy must not be trained on responses of another one.
Seen to work: 0.32 on a CPU in float32, to 1e-6. There, a model whose input and output embeddings are one tensor must be
pushed with both names, as `state_dict` has them; without the second, the output keeps its old copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import torch

from bontune.models.prompting import encode, end_tokens
from bontune.models.sampling import token_log_probs
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import hf
from bontune.rollout.request import Asked, Request

CHECKED = 4  # responses of a rollout whose log-probabilities are compared
EXACT, ROUNDED = 1e-3, 0.1  # largest mean difference per token, in float32 and in shorter formats
_TRIAL = 1.05  # what the weights are multiplied by to see whether the engine follows
_SEEDS = 2**52


class Vllm:
    """An engine with the arguments of `rollout.hf.sample_groups`: `engine.sample_groups(model, tokenizer, prompts, ...)`.

    llm: a `vllm.LLM` with logprobs_mode="processed_logprobs"; `load` makes one.
    tolerance: largest mean difference per token between its log-probabilities and the policy's, in nats. By default
    1e-3 where the policy is in float32, 0.1 otherwise.
    """

    def __init__(self, llm: Any, *, tolerance: float | None = None) -> None:
        self.llm, self.tolerance = llm, tolerance
        self._step: int | None = None  # of the weights it has

    @classmethod
    def load(cls, folder: str, *, tolerance: float | None = None, **settings: Any) -> Vllm:
        """vLLM with the model of a folder. settings: of `vllm.LLM`, such as gpu_memory_utilization.

        Raises ValueError where vLLM is not installed, or is asked to use several devices.
        """
        if settings.get("tensor_parallel_size", 1) > 1 or settings.get("data_parallel_size", 1) > 1:
            raise ValueError("weights are pushed into an engine of this process on one device only")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            from vllm import LLM  # pyright: ignore  # it takes this file for the package
        except ImportError as fault:
            raise ValueError(
                f"--engine vllm needs vLLM in this environment: pip install 'bontune[vllm]' ({fault})"
            ) from fault
        fixed = {"logprobs_mode": "processed_logprobs", "generation_config": "vllm", "seed": 0}
        return cls(
            LLM(model=folder, **{"gpu_memory_utilization": 0.3} | settings | fixed), tolerance=tolerance
        )

    def sample_groups(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        *,
        on_group: Callable[[Group], None] | None = None,
        **asked: Unpack[Asked],
    ) -> list[Group]:
        """Draw `group_size` responses for every prompt from vLLM, with the weights that `model` has now.

        Weights are pushed where `policy_step` is another one than in the last call. vLLM does its own batching, so
        `rows_per_batch` is not used. Response j is drawn with seed s + j of the prompt's own s.
        Raises ValueError as `rollout.hf.sample_groups`, and RuntimeError where vLLM's log-probabilities are not the
        model's.
        """
        request = Request(prompts=tuple(prompts), **asked)
        sampling, step = request.sampling, request.policy_step
        encoded = encode(model, tokenizer, prompts, sampling)
        if not encoded:
            return []
        if self._step is None:
            self._try_pushing(model, tokenizer, encoded[0], sampling)
        if self._step != step:
            self._push(model)
            self._step = step
        seeds = [part.key(request.policy_step) % _SEEDS + part.first for part in request.parts()]
        ends = end_tokens(model, tokenizer, sampling)
        outputs = self._generate(encoded, request.group_size, sampling, seeds, ends)
        groups = [
            _group(prompt, ids, output, tokenizer, ends, step, sampling)
            for prompt, ids, output in zip(prompts, encoded, outputs, strict=True)
        ]
        self._check(model, groups[:CHECKED], "after its weights were pushed")
        if on_group is not None:
            for group in groups:
                on_group(group)
        return groups

    def _generate(
        self,
        encoded: Sequence[tuple[int, ...]],
        count: int,
        sampling: Sampling,
        seeds: Sequence[int],
        ends: frozenset[int],
    ) -> list[Any]:
        from vllm import SamplingParams  # pyright: ignore  # as above

        shared = {
            "n": count,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
            "stop": list(sampling.stop) or None,
            "stop_token_ids": sorted(ends),
            "logprobs": 0,
        }
        return self.llm.generate(
            [{"prompt_token_ids": list(ids)} for ids in encoded],
            [SamplingParams(**shared, seed=seed) for seed in seeds],
            use_tqdm=False,
        )

    def _push(self, model: Any) -> None:
        with _weights(model) as weights:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(weights.items())})
        self.llm.reset_prefix_cache()

    def _try_pushing(self, model: Any, tokenizer: Any, ids: tuple[int, ...], sampling: Sampling) -> None:
        """Change all weights, push them, compare, and put them back. The next push is that of the right ones."""
        parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
        kept = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
        ends = end_tokens(model, tokenizer, sampling)
        try:
            with torch.no_grad():
                for parameter in parameters:
                    parameter.mul_(_TRIAL)
            self._push(model)
            (output,) = self._generate([ids], CHECKED, sampling, [0], ends)
        except (AttributeError, NotImplementedError, TypeError) as fault:
            raise RuntimeError(
                f"this vLLM takes no new weights, so it cannot be trained with: {type(fault).__name__}: {fault}"
            ) from fault
        else:
            prompt = Prompt(id="trial", text="")
            group = _group(prompt, ids, output, tokenizer, ends, 0, sampling)
            self._check(model, [group], "for weights changed to see whether it follows")
        finally:
            with torch.no_grad():
                for parameter, before in zip(parameters, kept, strict=True):
                    parameter.copy_(before)

    def _check(self, model: Any, groups: Sequence[Group], when: str) -> None:
        """Raise RuntimeError where the engine's log-probabilities are not those of the model."""
        allowed = self.tolerance
        if allowed is None:
            allowed = EXACT if next(model.parameters()).dtype == torch.float32 else ROUNDED
        share = -(-CHECKED // len(groups))
        found = max(
            difference(model, group, row) for group in groups for row in range(min(share, group.size))
        )
        if not found <= allowed:
            raise RuntimeError(
                f"vLLM's log-probabilities are not the policy's {when}: they differ by {found:.3g} per token, of "
                f"{allowed:g} allowed. This version or backend does not take pushed weights as it should, or computes "
                "too coarsely; use --engine hf"
            )


def difference(model: Any, group: Group, row: int) -> float:
    """Mean absolute difference per token between a response's recorded log-probabilities and the model's own."""
    response = group.tokens[row, : int(group.lengths[row])]
    device = next(model.parameters()).device
    ids = torch.cat([torch.tensor(group.prompt_tokens), response]).unsqueeze(0).to(device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_tokens) - 1 : -1]
        own = token_log_probs(logits, response.to(device), group.sampling).cpu()
    return float((own - group.log_probs[row, : len(response)]).abs().mean())


@contextmanager
def _weights(model: Any) -> Iterator[Mapping[str, torch.Tensor]]:
    """The weights under the names of the plain model; adapters of PEFT are merged meanwhile."""
    if not hasattr(model, "merge_adapter"):
        yield model.state_dict()
        return
    model.merge_adapter()
    try:
        yield {
            name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
            for name, tensor in model.state_dict().items()
            if ".lora_" not in name and ".modules_to_save." not in name
        }
    finally:
        model.unmerge_adapter()


def _group(
    prompt: Prompt,
    ids: tuple[int, ...],
    output: Any,
    tokenizer: Any,
    ends: frozenset[int],
    policy_step: int,
    sampling: Sampling,
) -> Group:
    choices = sorted(output.outputs, key=lambda choice: choice.index)
    lengths = torch.tensor([len(choice.token_ids) for choice in choices])
    tokens = torch.zeros(len(choices), int(lengths.max()), dtype=torch.int64)
    log_probs = torch.zeros(tokens.shape, dtype=torch.float32)
    for row, choice in enumerate(choices):
        drawn = list(choice.token_ids)
        tokens[row, : len(drawn)] = torch.tensor(drawn)
        told = [entry[token].logprob for token, entry in zip(drawn, choice.logprobs, strict=True)]
        log_probs[row, : len(drawn)] = torch.tensor(told)
    return Group(
        prompt=prompt,
        texts=hf.texts_of(tokenizer, tokens, lengths, sampling, ends),
        prompt_tokens=ids,
        tokens=tokens,
        lengths=lengths,
        log_probs=log_probs,
        finished=torch.tensor([choice.finish_reason == "stop" for choice in choices]),
        policy_step=policy_step,
        sampling=sampling,
    )
