"""A generative verifier: a language model behind a server says whether a response is right (arXiv:2408.15240).

Its score is P("Yes"), from the log-probabilities of its answer, or the share of k answers that say yes. An answer that
says neither is an abstention; where nothing else is said, the response is undecided, and never 0.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlunsplit

from bontune.records import Prompt, Verdict
from bontune.rollout.endpoint import KEY as OPENAI_KEY
from bontune.rollout.endpoint import Endpoint, Failed, post_all
from bontune.tasks.final import final_of, final_part
from bontune.verifiers.remote import FLAGS, KEY, PROBE, failed, read_address, sendable

TEMPLATE = """\
Here are a question and a response to it.

<question>
{prompt}
</question>

<response>
{response}
</response>

Is the final answer of the response correct? Answer with one word, Yes or No."""
_FIELDS = re.compile(r"\{(prompt|response|answer)\}")
_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_MOST_ALTERNATIVES = 20  # of a token, as the OpenAI API allows


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerativeVerifier:
    """Scores responses in [0, 1] by a chat model: `judge(prompt, texts)`, and `judge.many` with reasons.

    server: of the OpenAI API.  template: what is asked; {prompt}, {response} and {answer}, the reference, are filled in.
    votes: answers drawn per response, whose share of yes is the score; 0: P(yes) / (P(yes) + P(no)) at the first token of
    the answer that is either.  tokens: of an answer at most.  temperature: of the votes.
    final: show only the final part of a response; one whose reasoning never ends scores 0.
    counts: what the answers were like: "position i", where yes or no stood, "yes", "no", "neither", "failed".
    """

    overlaps: ClassVar[bool] = True
    server: Endpoint
    template: str = TEMPLATE
    votes: int = 0
    tokens: int | None = None
    temperature: float = 1.0
    final: bool = False
    counts: Counter[str] = field(default_factory=Counter, compare=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.votes < 0 or (self.tokens is not None and self.tokens < 1) or not self.temperature > 0:
            raise ValueError(
                "judge: votes must be at least 0, tokens at least 1 and temperature above 0, got "
                f"{self.votes}, {self.tokens} and {self.temperature}"
            )
        if "{response}" not in self.template:
            raise ValueError(
                "judge: the template must hold {response}, where the response is to be filled in"
            )
        if not self.server.model:
            raise ValueError(f"judge: name the model behind {self.server.url}: judge:{self.server.url}#NAME")

    @property
    def at_once(self) -> int:
        """Groups that it may be asked of at a time."""
        return self.server.concurrency

    @property
    def version(self) -> str:
        """What it is asked, of whom: the weights cannot be seen."""
        asked = f"{self.template} {self.tokens} {self.temperature} {self.final}"
        way = f"{self.votes} votes" if self.votes else "P(yes)"
        return f"judge {way}: {self.server.fingerprint}, {hashlib.sha256(asked.encode()).hexdigest()[:12]}"

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """One score per text; None where there is none."""
        return [verdict.reward for verdict in self.many(prompt, texts)]

    def many(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, whose reward is the score, or None with the reason."""
        parts = [final_of(prompt, text) if self.final else text for text in texts]
        asked = [part for part in parts if part is not None]
        each = max(1, self.votes)
        bodies = [self._body(prompt, part, vote) for part in asked for vote in range(each)]
        answers = post_all(self.server, "/chat/completions", bodies, KEY)
        read = self._votes if self.votes else self._chance
        said = iter([read(answers[i : i + each]) for i in range(0, len(answers), each)])
        return [Verdict(reward=0.0, reason="no final part") if part is None else next(said) for part in parts]

    def _body(self, prompt: Prompt, text: str, vote: int) -> dict[str, Any]:
        values = {"prompt": prompt.text, "response": text, "answer": prompt.answer or ""}
        content = sendable(_FIELDS.sub(lambda match: values[match[1]], self.template))
        body = {"model": self.server.model, "messages": [{"role": "user", "content": content}], "n": 1}
        if self.votes:
            return body | {"temperature": self.temperature, "max_tokens": self.tokens or 1024, "seed": vote}
        told = {"logprobs": True, "top_logprobs": _MOST_ALTERNATIVES}
        return body | told | {"temperature": 0.0, "max_tokens": self.tokens or 8}

    def _chance(self, answers: Sequence[dict[str, Any] | Failed]) -> Verdict:
        (answer,) = answers
        if isinstance(answer, Failed):
            return self._failed(failed(answer))
        try:
            told = _choice(answer).get("logprobs") or {}
            rows = told.get("content") or []
            if not rows:
                raise ValueError("it tells no log-probabilities; ask for votes, ?votes=8")
            found = next(((i, row) for i, row in enumerate(rows) if word_of(row["token"])), None)
            if found is None:
                self._count("neither")
                reason = f"the judge said neither yes nor no: {_text(answer)[:200]!r}"
                return Verdict(reward=None, reason=reason, fault="abstained")
            position, row = found
            chance = chance_of_yes(row)
        except (AttributeError, KeyError, TypeError, ValueError) as fault:
            return self._failed(_unfit(self.server, answer, fault))
        self._count(f"position {position}", "yes" if chance > 0.5 else "no")
        return Verdict(reward=chance)

    def _votes(self, answers: Sequence[dict[str, Any] | Failed]) -> Verdict:
        words = []
        for answer in answers:
            if isinstance(answer, Failed):
                return self._failed(failed(answer))
            try:
                words.append(last_word(_text(answer)))
            except (AttributeError, KeyError, TypeError, ValueError) as fault:
                return self._failed(_unfit(self.server, answer, fault))
        self._count(*(word or "neither" for word in words))
        yes, no = words.count("yes"), words.count("no")
        if not yes + no:
            reason = f"none of {len(words)} answers of the judge said yes or no"
            return Verdict(reward=None, reason=reason, fault="abstained")
        return Verdict(reward=yes / (yes + no))

    def _failed(self, verdict: Verdict) -> Verdict:
        self._count("failed")
        return verdict

    def _count(self, *names: str) -> None:
        with self._lock:
            self.counts.update(names)


@dataclass(frozen=True, slots=True)
class AboveThreshold:
    """A scorer as a verifier: right, 1, where the score reaches the threshold; undecided where there is no score."""

    overlaps: ClassVar[bool] = True
    scorer: GenerativeVerifier
    threshold: float

    @property
    def version(self) -> str:
        """Of the scorer, with the threshold."""
        return f"{self.scorer.version} >= {self.threshold}"

    @property
    def counts(self) -> Counter[str]:
        """Of the scorer."""
        return self.scorer.counts

    def __call__(self, prompt: Prompt, text: str) -> Verdict:
        """One verdict."""
        return self.many(prompt, [text])[0]

    def many(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text."""
        scored = self.scorer.many(prompt, texts)
        return [
            v if v.reward is None else replace(v, reward=float(v.reward >= self.threshold)) for v in scored
        ]


def word_of(token: str) -> str | None:
    """ "yes" or "no" where a token is one of them, whatever its case, the space before and the marks around it."""
    word = token.strip(" \t\r\n\u0120\u2581*_.,:;!\"'`()[]").casefold()
    return word if word in ("yes", "no") else None


def last_word(text: str) -> str | None:
    """The last "yes" or "no" of what a judge says, behind its reasoning; None where there is none."""
    found = _WORD.findall(final_part(text) or "")
    return found[-1].casefold() if found else None


def chance_of_yes(row: Mapping[str, Any]) -> float:
    """P(yes) / (P(yes) + P(no)) at a token, over all spellings among it and its alternatives.

    Raises ValueError where a log-probability is none.
    """
    told = {item["token"]: float(item["logprob"]) for item in [row, *(row.get("top_logprobs") or [])]}
    if any(not value <= 1e-3 for value in told.values()):
        raise ValueError(f"a log-probability is {max(told.values())}")
    sums: dict[str, float] = dict.fromkeys(("yes", "no"), 0.0)
    for token, value in told.items():
        if (word := word_of(token)) is not None:
            sums[word] += math.exp(value)
    if not sum(sums.values()):
        raise ValueError("yes and no have no probability")
    return sums["yes"] / sum(sums.values())


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "votes": int,
    "template": str,
    "tokens": int,
    "temperature": float,
    "final": FLAGS.__getitem__,
    "threshold": float,
    "concurrency": int,
    "timeout": float,
    "retries": int,
}


def parse_judge(spec: str, what: str = "--scorer") -> tuple[GenerativeVerifier, float | None]:
    """(the judge, its threshold where one is given) of `judge:http://HOST:PORT/v1?votes=8&template=FILE#MODEL`.

    Nothing is asked yet. Raises ValueError that says what is wrong with the text.
    """
    parts, options = read_address(spec.removeprefix("judge:"), what, _OPTIONS)
    threshold = options.pop("threshold", None)
    own = {name: options.pop(name) for name in ("votes", "tokens", "temperature", "final") if name in options}
    if "template" in options:
        own["template"] = _read(options.pop("template"), what)
    url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    key = os.environ.get(KEY) or os.environ.get(OPENAI_KEY)
    settings: dict[str, Any] = {"timeout": 120.0} | options
    return GenerativeVerifier(
        server=Endpoint(url=url, model=parts.fragment, key=key, **settings), **own
    ), threshold


def connect_judge(spec: str) -> GenerativeVerifier:
    """The judge as a scorer, once it has answered. Raises ValueError, with what it said, where it does not."""
    judge, threshold = parse_judge(spec)
    if threshold is not None:
        raise ValueError(f"--scorer {spec}: a threshold is for --verifier; a scorer gives the score itself")
    return _proven(judge, f"--scorer {spec}")


def judge_as_verifier(spec: str) -> AboveThreshold:
    """The judge as a verifier, right from `threshold`, 0.5, on; raises as `connect_judge` does."""
    judge, threshold = parse_judge(spec, "--verifier")
    return AboveThreshold(_proven(judge, f"--verifier {spec}"), 0.5 if threshold is None else threshold)


def _proven(judge: GenerativeVerifier, what: str) -> GenerativeVerifier:
    (verdict,) = judge.many(*PROBE)
    if verdict.reward is None:
        raise ValueError(f"{what} does not work: {verdict.reason}")
    judge.counts.clear()
    return judge


def _read(path: str, what: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as fault:
        raise ValueError(f"{what}: template {path!r} cannot be read: {fault}") from fault


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    if not answer["choices"]:
        raise ValueError("it has no choices")
    return answer["choices"][0]


def _text(answer: Mapping[str, Any]) -> str:
    return str(_choice(answer)["message"].get("content") or "")


def _unfit(server: Endpoint, answer: Any, fault: Exception) -> Verdict:
    said = f"it lacks {fault}" if isinstance(fault, KeyError) else str(fault)
    reason = f"{server.url} did not answer as the OpenAI API does: {said}; it said {str(answer)[:200]!r}"
    return Verdict(reward=None, reason=reason, fault="format")
