"""A learned verifier: a transformer that gives each response one number, trained on judged responses of a policy.

Any sequence-classification model with one label works, reward models from the hub included; any causal model of
transformers can be made into one. What is scored is the chance of being right, calibrated on prompts kept aside.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bontune.config import PLAIN, FitConfig, Prompting
from bontune.models.attention import pack, shared_attention, supported
from bontune.models.inputs import cache_argument
from bontune.models.loading import forget_quantization, gguf_of, own_device
from bontune.models.prompting import conversation, end_of_reply, in_force, shown, token_ids
from bontune.records import Graded, Prompt
from bontune.tasks.final import final_of

SETTINGS = "verifier.json"
LARGEST_LOGIT = 50.0  # a chance of exactly 0 or 1 has none that is finite
LEAST_SLOPE = (
    0.01  # of the log-odds for one standard deviation of the logit: calibration never turns the order
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedVerifier:
    """A scorer of responses: `verifier(prompt, texts)` gives the chance that each is right, in (0, 1).

    It reads the final part of a response, without its reasoning (`bontune.tasks.final`).

    model: a sequence-classification model of one label.  scale, offset: of its logit, set by calibration.
    flat: whether calibration found no rise of the chance with the logit, or nothing to find it on: scores keep the
    logit's order, and say no more as chances.
    chat: whether prompt and response are put into the tokenizer's chat template, as reward models expect.
    prompting: what the prompt alone is put into, the response behind it as the policy wrote it. Not with `chat`.
    Raises ValueError for a scale that is not above 0, which would turn the order of the scores round.
    """

    model: Any
    tokenizer: Any
    scale: float = 1.0
    offset: float = 0.0
    chat: bool = False
    rows_per_batch: int = 512
    prompting: Prompting = PLAIN
    flat: bool = False

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale) and math.isfinite(self.offset)):
            raise ValueError(
                f"a verifier's scale must be above 0, got {self.scale} (offset {self.offset}): any other turns the "
                "order of "
                "its scores round, or loses it. Teach it again (`bontune verifier`) on more prompts with right and "
                "wrong "
                "responses"
            )

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """One score per text: None where its final part is too long for the model, 0 where its reasoning never ends."""
        rows = self.tokens(prompt, texts)
        limit = getattr(self.model.config, "max_position_embeddings", None) or max(map(len, rows), default=0)
        fits = [i for i, row in enumerate(rows) if len(row) <= limit]
        scores: list[float | None] = [None] * len(rows)
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(fits), self.rows_per_batch):
                part = fits[start : start + self.rows_per_batch]
                logits = row_logits(self.model, [[rows[i] for i in part]]).double().cpu()
                chances = (self.scale * logits + self.offset).sigmoid().tolist()
                for i, chance in zip(part, chances, strict=True):
                    scores[i] = chance if final_of(prompt, texts[i]) is not None else 0.0
        return scores

    def tokens(self, prompt: Prompt, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompt with the final part of each response, ended where the tokenizer has an end token."""
        texts = [final_of(prompt, text) or "" for text in texts]
        if self.chat:
            return [self._turns(prompt, text) for text in texts]
        meta = prompt.meta if self.prompting.chat == "on" else {}  # a conversation is read as its text
        asked = shown([replace(prompt, tokens=None, meta=meta)], self.tokenizer, self.prompting)
        (ids,) = token_ids(self.tokenizer, asked)
        end = end_of_reply(self.tokenizer, self.prompting)
        tail = [] if end is None else [end]
        given = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return [[*ids, *response, *tail] for response in given]

    def _turns(self, prompt: Prompt, text: str) -> list[int]:
        turns = [*conversation(prompt, self.prompting), {"role": "assistant", "content": text}]
        return list(self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))

    @property
    def version(self) -> str:
        """Changes with the parameters and the calibration: scores of two versions are two measurements."""
        found = hashlib.blake2b(self._settings.encode(), digest_size=8)
        for parameter in self.model.parameters():
            found.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
        return f"learned-{found.hexdigest()}"

    @property
    def _settings(self) -> str:
        told = "" if self.prompting.plain else f" {self.prompting!r}"
        return f"{self.scale} {self.offset} {self.chat}{told}"

    def save(self, folder: str | Path) -> None:
        """A plain transformers folder, with the calibration beside it."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        settings: dict[str, Any] = {"scale": self.scale, "offset": self.offset, "chat": self.chat}
        if not self.prompting.plain:
            settings["prompting"] = asdict(self.prompting)
        if self.flat:
            settings["flat"] = True
        (Path(folder) / SETTINGS).write_text(json.dumps(settings, indent=1))

    @classmethod
    def load(cls, name: str | Path) -> LearnedVerifier:
        """From a saved verifier, or a reward model of the hub with one label, which is taken as calibrated.

        Raises ValueError where it is no sequence-classification model of one label.
        """
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as fault:  # transformers raises many kinds
            first = (str(fault).strip() or repr(fault)).splitlines()[0]
            raise ValueError(f"verifier {str(name)!r} cannot be loaded: {first}") from fault
        if model.config.num_labels != 1 or report["missing_keys"]:
            raise ValueError(
                f"verifier {str(name)!r} must be a sequence-classification model of one label, got "
                f"{', '.join(model.config.architectures or ['no architecture'])} with {model.config.num_labels}; "
                "train one with `bontune verifier`"
            )
        path = Path(name) / SETTINGS
        known: dict[str, Any] = {"chat": tokenizer.chat_template is not None}
        if path.exists():
            known = json.loads(path.read_text())
        if "prompting" in known:
            known["prompting"] = Prompting(**known["prompting"])
        return cls(model=model.eval(), tokenizer=tokenizer, **known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Different responses to one prompt: whether each is right, and how often it was drawn."""

    prompt: Prompt
    texts: tuple[str, ...]
    right: tuple[bool, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, graded: Graded) -> Labelled:
        """The decided responses of a group; right is a reward above one half."""
        rewards = {t: v.reward for t, v in zip(graded.group.texts, graded.verdicts, strict=True)}
        counts = Counter(graded.group.texts)
        texts = tuple(text for text, reward in rewards.items() if reward is not None)
        return cls(
            prompt=graded.group.prompt,
            texts=texts,
            right=tuple((rewards[text] or 0.0) > 0.5 for text in texts),
            counts=tuple(counts[text] for text in texts),
        )

    @property
    def mixed(self) -> bool:
        """Whether both kinds are there: other prompts say nothing about which response to choose."""
        return any(self.right) and not all(self.right)


def on_device(verifier: LearnedVerifier) -> LearnedVerifier:
    """The verifier with its model moved to this process's device."""
    verifier.model.to(own_device())
    return verifier


def scorer_from(name: str | Path, *, seed: int = 0, prompting: Prompting = PLAIN) -> LearnedVerifier:
    """An untrained verifier from any causal model or encoder of transformers: its body, and a new head of zeros.

    prompting: of the policy whose responses it scores. A body without a chat template reads the text without it.
    """
    folder, gguf = gguf_of(str(name))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, **gguf, num_labels=1, dtype=torch.float32
        )
    if gguf:
        forget_quantization(model)
    tokenizer = AutoTokenizer.from_pretrained(folder, **gguf)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = _first_known(tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    with torch.no_grad():
        for parameter in getattr(model, "score", model).parameters() if hasattr(model, "score") else ():
            parameter.zero_()
    if not tokenizer.chat_template:
        prompting = replace(prompting, chat="off", system=None, template_args=())
    return LearnedVerifier(model=model.eval(), tokenizer=tokenizer, prompting=in_force(prompting, tokenizer))


def fit(
    verifier: LearnedVerifier,
    labelled: Sequence[Labelled],
    config: FitConfig,
    on_step: Callable[[float], None] = lambda loss: None,
) -> LearnedVerifier:
    """Train the verifier's model in place and calibrate it; returns the calibrated verifier.

    on_step: called with the loss of each step. Raises ValueError where too few prompts have both right and wrong
    responses to train and calibrate on.
    """
    from transformers import get_linear_schedule_with_warmup  # brings the trainer and PEFT along

    order = random.Random(config.seed)
    used, aside = _divide(labelled, config.held_out, order)
    if not used:
        mixed = sum(item.mixed for item in labelled)
        raise ValueError(
            f"a verifier needs prompts with right and wrong responses, at least 2; got {mixed} of {len(labelled)}. "
            "Draw from "
            "more prompts, more responses to each, or with a policy and a temperature that are right at times"
        )
    model = verifier.model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = get_linear_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
    model.eval()  # no dropout: what is trained is what scores
    known: dict[str, float] = {}
    for batch in _batches(used, config, order, known):
        chosen = [_some(item, config.responses_per_prompt, order) for item in batch]
        rows = [verifier.tokens(item.prompt, item.texts) for item in chosen]
        parts = row_logits(model, rows).split([len(item.texts) for item in chosen])
        losses = [_balanced_loss(part, item.right) for part, item in zip(parts, chosen, strict=True)]
        loss = torch.stack(losses).mean()
        known |= zip((item.prompt.id for item in batch), torch.stack(losses).tolist(), strict=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(loss.item())
    return calibrate(verifier, aside)


def learned_from(labelled: Sequence[Labelled], config: FitConfig) -> tuple[list[Labelled], list[Labelled]]:
    """(what `fit` trains on, what it keeps aside for calibration), of these labels and settings."""
    return _divide(labelled, config.held_out, random.Random(config.seed))


def _divide(
    labelled: Sequence[Labelled], held_out: float, order: random.Random
) -> tuple[list[Labelled], list[Labelled]]:
    """Prompts with both labels to train on; the others of them, and as large a share of those with one label, aside."""
    mixed = sorted((item for item in labelled if item.mixed), key=lambda item: item.prompt.id)
    order.shuffle(mixed)
    aside = mixed[: max(1, round(held_out * len(mixed)))]
    # All held-out prompts, mixed or not: chances must be right on what will be met.
    every = max(2, len(labelled) // max(1, len(aside)))
    rest = [item for i, item in enumerate(labelled) if not item.mixed and i % every == 0]
    return mixed[len(aside) :], aside + rest


def calibrate(verifier: LearnedVerifier, labelled: Sequence[Labelled]) -> LearnedVerifier:
    """Scale and offset of the logit that make its chances fit the labels best (Platt, 1999), the scale above 0.

    Weighed are responses as they were drawn. Too few labels can fit best with a scale of 0 or below, which would lose or
    turn the order that the verifier has learned: then the best offset for the least scale is taken, and the verifier is
    `flat`.
    """
    plain = replace(verifier, scale=1.0, offset=0.0, flat=False)
    logits, right, counts = [], [], []
    for item in labelled:
        scores = plain(item.prompt, item.texts)
        kept = [
            i for i, score in enumerate(scores) if score and item.counts[i]
        ]  # 0: reasoning without an end
        logits += [torch.logit(torch.tensor(scores[i], dtype=torch.float64)) for i in kept]
        right += [float(item.right[i]) for i in kept]
        counts += [float(item.counts[i]) for i in kept]
    if not logits or len(set(right)) < 2:
        return replace(plain, flat=True)
    x = torch.stack(logits).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    scale, offset, flat = _platt(x, torch.tensor(right).double(), torch.tensor(counts).double())
    return replace(plain, scale=scale, offset=offset, flat=flat)


def _platt(logits: Tensor, right: Tensor, counts: Tensor) -> tuple[float, float, bool]:
    """(scale, offset, flat) that minimise the cross-entropy where the scale is at least the least.

    The loss is convex, so that where the free optimum lies below the least scale, the bounded one lies at it.
    """
    mean, spread = logits.mean(), logits.std(correction=0)
    if spread < 1e-6:  # all alike: nothing to fit but how many are right
        rate = (right * counts).sum() / counts.sum()
        return 1.0, float(torch.logit(rate) - mean), True
    x = (logits - mean) / spread
    slope, shift = _least_entropy(x, right, counts)
    flat = slope < LEAST_SLOPE
    if flat:
        slope, shift = LEAST_SLOPE, _least_entropy(x, right, counts, LEAST_SLOPE)[1]
    scale = slope / float(spread)
    return scale, shift - scale * float(mean), flat


def _least_entropy(
    x: Tensor, right: Tensor, counts: Tensor, slope: float | None = None
) -> tuple[float, float]:
    """(slope, shift) of least cross-entropy, or the best shift for a slope; a slight pull to 0 keeps them finite."""
    found = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], lr=1, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        rise = found[0] if slope is None else slope
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(
            rise * x + found[1], right, weight=counts, reduction="sum"
        )
        total = entropy / counts.sum() + 1e-6 * found.square().sum()
        total.backward()
        return total

    optimizer.step(loss)  # pyright: ignore
    rise, shift = found.detach().tolist()
    return rise if slope is None else slope, shift


def row_logits(model: Any, groups: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """[K]: the logit of each row of tokens, group by group. What the rows of a group begin with is computed once."""
    starts = [_common_start(rows) for rows in groups]
    # One group alone is as fast with the model's own cache.
    if len(groups) > 1 and all(starts) and supported(model) and hasattr(model, "score"):
        return _packed_logits(model, groups, starts)
    return _padded_logits(model, [row for rows in groups for row in rows])


def _packed_logits(
    model: Any, groups: Sequence[Sequence[Sequence[int]]], starts: Sequence[Sequence[int]]
) -> Tensor:
    """All groups end to end, without padding: each start once, then what is the rows' own."""
    device = next(model.parameters()).device
    own = [
        torch.tensor(row[len(start) :]) for rows, start in zip(groups, starts, strict=True) for row in rows
    ]
    lengths = torch.tensor([len(row) for row in own])
    owner = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(rows) for rows in groups]))
    tokens = torch.nn.functional.pad(torch.nn.utils.rnn.pad_sequence(own, batch_first=True), (0, 1))
    layout = pack(
        starts, owner, tokens, lengths + 1, device=device
    )  # which leaves out the last token of each
    with shared_attention(model):
        out = model.base_model(
            input_ids=layout.ids, position_ids=layout.positions, layout=layout, use_cache=False
        )
    last = (layout.prompt_tokens + lengths.cumsum(0) - 1).to(device)
    return model.score(out.last_hidden_state[0, last]).squeeze(-1)


def _padded_logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """The same for any model, with its cache where it has one."""
    device = next(model.parameters()).device
    shared = _common_start(rows) if len(rows) > 1 else []
    cache = None
    if shared and getattr(model.config, "use_cache", False):
        out = model.base_model(input_ids=torch.tensor([shared], device=device), use_cache=True)
        cache = getattr(out, "past_key_values", None)
    if cache is None or not hasattr(cache, "reorder_cache"):
        shared, cache = [], None
    else:
        cache.reorder_cache(torch.zeros(len(rows), dtype=torch.int64, device=device))
    rest = [list(row[len(shared) :]) for row in rows]
    longest = max(map(len, rest))
    pad = model.config.pad_token_id
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rest], device=device)
    lengths = torch.tensor([len(row) for row in rest], device=device)
    mask = torch.arange(longest, device=device) < lengths.unsqueeze(-1)
    if cache is not None:
        mask = torch.nn.functional.pad(mask, (len(shared), 0), value=True)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
    if cache is not None:
        positions = torch.arange(len(shared), len(shared) + longest, device=device)
        inputs |= {cache_argument(model): cache, "position_ids": positions.expand(len(rows), -1)}
    return model(**inputs).logits.squeeze(-1)


def _common_start(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with, shorter than the shortest."""
    columns = zip(*rows, strict=False)
    same = list(takewhile(lambda column: len(set(column)) == 1, columns))
    return [column[0] for column in same[: min(map(len, rows)) - 1]]


def _balanced_loss(logits: Tensor, right: Sequence[bool]) -> Tensor:
    """Cross-entropy of one prompt's responses; the right ones together weigh as much as the wrong ones."""
    y = torch.tensor(right, dtype=logits.dtype, device=logits.device)
    weight = torch.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, y, weight=weight, reduction="sum")


def _batches(
    items: Sequence[Labelled], config: FitConfig, order: random.Random, known: Mapping[str, float]
) -> Iterator[list[Labelled]]:
    """`steps` batches; every pass over the prompts is a new permutation.

    known: the last loss on each prompt by its id, as it is when a batch is asked for. A share of `hard_prompts` is drawn
    by it, without replacement, from prompts that are not next in turn.
    """
    queue: list[Labelled] = []
    hard = min(round(config.hard_prompts * config.prompts_per_step), config.prompts_per_step - 1)
    in_turn = config.prompts_per_step - hard
    for _ in range(config.steps):
        while len(queue) < in_turn:
            queue += order.sample(items, len(items))
        batch, queue = queue[:in_turn], queue[in_turn:]
        yield batch + (_hardest(items, batch, known, hard, order) if hard else [])


def _hardest(
    items: Sequence[Labelled],
    batch: Sequence[Labelled],
    known: Mapping[str, float],
    count: int,
    order: random.Random,
) -> list[Labelled]:
    """Up to `count` others, drawn without replacement in proportion to their loss (Efraimidis and Spirakis, 2006)."""
    taken = {item.prompt.id for item in batch}
    others = [item for item in items if item.prompt.id not in taken and known.get(item.prompt.id, 0.0) > 0]
    keys = {item.prompt.id: order.random() ** (1 / known[item.prompt.id]) for item in others}
    return sorted(others, key=lambda item: -keys[item.prompt.id])[:count]


def _some(item: Labelled, count: int, order: random.Random) -> Labelled:
    """At most `count` of the responses, drawn at random, half of them right as far as there are enough."""
    right = [i for i, ok in enumerate(item.right) if ok]
    wrong = [i for i, ok in enumerate(item.right) if not ok]
    half = max(1, count // 2)
    most = max(half, count - len(wrong))
    right = order.sample(right, min(len(right), most))
    chosen = right + order.sample(wrong, min(len(wrong), max(1, count - len(right))))
    columns = {name: tuple(getattr(item, name)[i] for i in chosen) for name in ("texts", "right", "counts")}
    return replace(item, **columns)


def _first_known(*values: int | None) -> int:
    return next(value for value in values if value is not None)


class Refreshed:
    """A learned verifier that is trained further on the responses of the policy it guides.

    Use it as `Run.score`, and its `observe` as `Run.after_step`. The policy learns to please the verifier where the
    verifier is wrong; every `every` steps the judged responses of the last `keep` prompts correct that.
    """

    def __init__(self, verifier: LearnedVerifier, config: FitConfig, *, every: int, keep: int = 2000) -> None:
        if every < 1 or keep < 2:
            raise ValueError(f"every must be at least 1 and keep at least 2, got {every} and {keep}")
        self.verifier, self.config, self.every = verifier, config, every
        self._seen: deque[Labelled] = deque(maxlen=keep)
        self._begun = verifier.version
        self.refreshes = 0

    @property
    def version(self) -> str:
        """Of the verifier it began with, and how often it was trained since: within one run that says all."""
        return f"{self._begun} refreshed {self.refreshes} times"

    def state_dict(self) -> dict[str, Any]:
        """What it has learnt and what it remembers, for a checkpoint."""
        return {
            "model": self.verifier.model.state_dict(),
            "calibration": (self.verifier.scale, self.verifier.offset, self.verifier.flat),
            "seen": json.dumps([asdict(item) for item in self._seen]),
            "refreshes": self.refreshes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.verifier.model.load_state_dict(state["model"])
        scale, offset, *flat = state["calibration"]
        self.verifier = replace(self.verifier, scale=scale, offset=offset, flat=flat == [True])
        self._seen.clear()
        for item in json.loads(state["seen"]):
            columns = {name: tuple(item[name]) for name in ("texts", "right", "counts")}
            self._seen.append(Labelled(prompt=Prompt(**item["prompt"]), **columns))
        self.refreshes = state["refreshes"]

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """Scores by the verifier as it is now."""
        return self.verifier(prompt, texts)

    def observe(self, step: int, graded: Sequence[Graded]) -> None:
        """Remember judged groups, and train the verifier where its turn has come."""
        self._seen.extend(Labelled.of(item) for item in graded)
        if (step + 1) % self.every or sum(item.mixed for item in self._seen) < 2:
            return
        config = replace(self.config, seed=self.config.seed + step + 1)
        self.verifier = fit(self.verifier, list(self._seen), config)
        self.refreshes += 1
