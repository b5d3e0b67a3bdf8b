"""Rollouts by vLLM in this process, with the weights of the policy in training pushed into it before each rollout.

One process, one device. Weights go in by vLLM's weight-transfer engine, the interface that it keeps for training: a
backend of our own is registered there, which hands tensors over within the process. Where a vLLM has no such engine, by
the worker's `reload_weights`. Either way each layer is restored to its state before vLLM packed it. Whether that works
depends on version, backend and model, so it is tried before anything is trained, with weights changed on purpose, and
log-probabilities are compared with the policy's own in every rollout. What does not pass is refused: a policy must not
be trained on responses of another one.
Seen to work: 0.32 on a CPU in float32, to 1e-6. There, a model whose input and output embeddings are one tensor must be
pushed with both names, as `state_dict` has them; without the second, the output keeps its old copy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Unpack

import torch

from bontune.models.prompting import encode, end_tokens
from bontune.models.sampling import token_log_probs
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import hf
from bontune.rollout.request import Asked, Request

CHECKED = 4  # responses of a rollout whose log-probabilities are compared
EXACT, ROUNDED = 1e-3, 0.1  # largest mean difference per token, in float32 and in shorter formats
BACKEND = "bontune"  # of vLLM's weight-transfer engine: tensors of this very process
_TRIAL = 1.05  # what the weights are multiplied by to see whether the engine follows
_SEEDS = 2**52


class Vllm:
    """An engine with the arguments of `rollout.hf.sample_groups`: `engine.sample_groups(model, tokenizer, prompts, ...)`.

    llm: a `vllm.LLM` with logprobs_mode="processed_logprobs"; `load` makes one.
    tolerance: largest mean difference per token between its log-probabilities and the policy's, in nats. By default
    1e-3 where the policy is in float32, 0.1 otherwise.
    transfers: whether it was made with the backend `BACKEND` of vLLM's weight-transfer engine.
    sleeps: give its memory up between rollouts, weights and all, for the update: it needs enable_sleep_mode=True.
    """

    def __init__(
        self, llm: Any, *, tolerance: float | None = None, transfers: bool = False, sleeps: bool = False
    ) -> None:
        self.llm, self.tolerance, self.transfers, self.sleeps = llm, tolerance, transfers, sleeps
        self._step: int | None = None  # of the weights it has; None where they have to be pushed first
        self._tried = self._asleep = False
        self._in_use = threading.Lock()  # taken by one thread and given back by another

    @classmethod
    def load(
        cls, folder: str, *, tolerance: float | None = None, sleeps: bool = False, **settings: Any
    ) -> Vllm:
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
        fixed |= {"enable_sleep_mode": True} if sleeps else {}
        transfers = _register_backend()
        fixed |= {"weight_transfer_config": {"backend": BACKEND}} if transfers else {}
        llm = LLM(model=folder, **{"gpu_memory_utilization": 0.3} | settings | fixed)
        return cls(llm, tolerance=tolerance, transfers=transfers, sleeps=sleeps)

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
        encoded = encode(model, tokenizer, prompts, request.sampling)
        if not encoded:
            return []
        with self._in_use:
            self._follow(model, tokenizer, encoded[0], request)
            groups = self._groups(tokenizer, request, encoded, end_tokens(model, tokenizer, request.sampling))
            self._check(model, groups[:CHECKED], "after its weights were pushed")
            self._rest()
        if on_group is not None:
            for group in groups:
                on_group(group)
        return groups

    def begin(
        self, model: Any, tokenizer: Any, prompts: Sequence[Prompt], **asked: Unpack[Asked]
    ) -> Callable[[], list[Group]]:
        """Push the weights that `model` has now, and compare a few responses with it. What comes back draws the groups
        of `sample_groups` with them, once, in whatever thread, while the model may already be trained further; until it
        has, others that ask for responses wait.
        Raises as `sample_groups`.
        """
        request = Request(prompts=tuple(prompts), **asked)
        encoded = encode(model, tokenizer, prompts, request.sampling)
        ends = end_tokens(model, tokenizer, request.sampling)
        self._in_use.acquire()
        try:
            self._step = None
            self._follow(model, tokenizer, encoded[0], request)
            few = replace(request, prompts=request.prompts[:1], group_size=min(CHECKED, request.group_size))
            self._check(
                model, self._groups(tokenizer, few, encoded[:1], ends), "after its weights were pushed"
            )
        except BaseException:
            self._in_use.release()
            raise
        return lambda: self._finish(tokenizer, request, encoded, ends)

    def _finish(
        self, tokenizer: Any, request: Request, encoded: Sequence[tuple[int, ...]], ends: frozenset[int]
    ) -> list[Group]:
        try:
            groups = self._groups(tokenizer, request, encoded, ends)
            self._rest()
            self._step = None  # the next to ask has other weights, whatever step it names
            return groups
        finally:
            self._in_use.release()

    def _groups(
        self, tokenizer: Any, request: Request, encoded: Sequence[tuple[int, ...]], ends: frozenset[int]
    ) -> list[Group]:
        step, sampling = request.policy_step, request.sampling
        seeds = [part.key(step) % _SEEDS + part.first for part in request.parts()]
        outputs = self._generate(encoded, request.group_size, sampling, seeds, ends)
        return [
            _group(prompt, ids, output, tokenizer, ends, step, sampling)
            for prompt, ids, output in zip(request.prompts, encoded, outputs, strict=True)
        ]

    def _follow(self, model: Any, tokenizer: Any, ids: tuple[int, ...], request: Request) -> None:
        """Have the weights that the model has, in memory that may have been given up meanwhile."""
        if self._asleep:
            self.llm.wake_up(tags=["weights"])
        if not self._tried:
            self._try_pushing(model, tokenizer, ids, request.sampling)
            self._tried = True
        if self._step != request.policy_step:
            self._push(model)
        if self._asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._step = request.policy_step

    def _rest(self) -> None:
        if self.sleeps:
            self.llm.sleep(level=2)  # weights and all: others are pushed anyway
            self._asleep, self._step = True, None

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
            pairs = list(weights.items())
            if self.transfers:
                self.llm.start_weight_update()
                self.llm.update_weights({"update_info": {"weights": pairs}})
                self.llm.finish_weight_update()
            else:
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": pairs})
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


def _register_backend() -> bool:
    """Register `BACKEND` with vLLM's weight-transfer engines; False where this vLLM has none."""
    try:
        from vllm.distributed.weight_transfer import factory  # pyright: ignore
        from vllm.distributed.weight_transfer.base import WeightTransferEngine  # pyright: ignore
        from vllm.model_executor.model_loader.reload import (  # pyright: ignore
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )
    except ImportError:
        return False

    class InProcess(WeightTransferEngine):
        init_info_cls = update_info_cls = dict

        def init_transfer_engine(self, init_info: Any) -> None:
            """There is nothing to connect to."""

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(update_info)

        def receive_weights(self, update_info: dict[str, Any]) -> None:
            self.model.load_weights(update_info["weights"])

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            """There is nothing to give back."""

    with suppress(ValueError):  # it is there since an engine was made before
        factory.WeightTransferEngineFactory.register_engine(BACKEND, InProcess)
    return True


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
