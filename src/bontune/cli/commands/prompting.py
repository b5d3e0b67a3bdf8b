"""What a model reads and how much it may write, settled before anything is drawn, and said in a line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bontune.cli.commands.terminal import say
from bontune.config import PLAIN, Prompting, Sampling
from bontune.evaluate.drawing import Draw
from bontune.models.loading import PACKAGED
from bontune.models.prompting import (
    NEW_TOKENS,
    budget_of,
    encode,
    ignored_defaults,
    in_force,
    in_words,
    shown,
)
from bontune.records import Group, Prompt
from bontune.rollout import Engine
from bontune.rollout.endpoint import Endpoint, with_prompting
from bontune.serve.best import SERVED, Server, read_served, trained_prompting, trained_sampling

LEAST = 32  # new tokens of the models in the package, and of all models in bontune 0.1
MOST_CUT = 0.05  # share of responses cut by the length limit that is worth a word

Settled = tuple[Any, Sampling, Prompting]
"""A model (an endpoint with the prompting), how it is drawn from, and what it reads for a prompt."""


def settle(
    where: str,
    model: Any,
    tokenizer: Any,
    sampling: Sampling,
    prompting: Prompting,
    prompts: Callable[[], Sequence[Prompt]],
    output: Path | None = None,
    temperatures: Sequence[float] = (),
) -> Settled:
    """Decide what is left open, check that every prompt fits, and say what is in force.

    where: the model's name; one of a training run is drawn from as it was trained where no option says otherwise.
    prompts: those that will be drawn for; none while that is not known.
    output: a folder that a run of bontune 0.1 began goes on as it began.  temperatures: drawn at instead of the one.
    Raises ValueError where prompts, settings and model do not go together, before anything is drawn.
    """
    sampling = replace(sampling, stop=tuple(map(_unescaped, sampling.stop)))
    sampling, prompting = _inherited(where, sampling, unescaped(prompting), output)
    if isinstance(model, Endpoint):
        model = with_prompting(model, prompting)
        sampling = replace(sampling, max_new_tokens=sampling.max_new_tokens or NEW_TOKENS)
        say(_line(where, model.prompting, sampling, temperatures, server=model.chat))
        return model, sampling, model.prompting
    prompting = in_force(prompting, tokenizer)
    if where not in PACKAGED:
        asked = shown(prompts(), tokenizer, prompting)
        if not sampling.max_new_tokens:
            sampling = replace(sampling, max_new_tokens=budget_of(model, tokenizer, asked))
        encode(model, tokenizer, asked, sampling)
    sampling = replace(sampling, max_new_tokens=sampling.max_new_tokens or LEAST)
    say(_line(where, prompting, sampling, temperatures))
    if ignored := ignored_defaults(model, sampling):
        told = ", ".join(f"{name} {value}" for name, value in ignored.items())
        say(f"the model's generation config has {told}, which is not used: --sampling.* alone decides")
    return model, sampling, prompting


def _inherited(
    where: str, sampling: Sampling, prompting: Prompting, output: Path | None
) -> tuple[Sampling, Prompting]:
    """What no option says, from the run that is gone on with, or from the run that trained the model."""
    run = Path(where).parent
    if output is not None and began_before_prompting(output):
        kept = Sampling(max_new_tokens=LEAST), PLAIN
    elif Path(where).name == "model" and (run / SERVED).is_file():
        settings = read_served(run)
        kept = trained_sampling(settings), trained_prompting(settings)
    else:
        return sampling, prompting
    sampling = replace(
        sampling,
        max_new_tokens=sampling.max_new_tokens or kept[0].max_new_tokens,
        stop=sampling.stop or kept[0].stop,
    )
    return sampling, kept[1] if prompting == Prompting() else prompting


def began_before_prompting(output: Path) -> bool:
    """Whether the folder holds a run of bontune 0.1, whose prompts were read as they are."""
    try:
        known = json.loads((output / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(known, dict) and "bontune" in known and "prompting" not in known


def unescaped(prompting: Prompting) -> Prompting:
    """The settings with line breaks and tabs where a shell passes on \\n and \\t as they are written."""
    texts = {name: getattr(prompting, name) for name in ("system", "prompt_template", "reply_start")}
    return replace(prompting, **{name: _unescaped(text) for name, text in texts.items() if text is not None})


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def given(prompting: Prompting) -> Prompting | None:
    """The settings that options give; None where none does, so that a run's own are in force."""
    return None if prompting == Prompting() else unescaped(prompting)


def say_served(server: Server) -> None:
    """What is in force where prompts are answered."""
    elsewhere = getattr(server.model, "chat", False)
    say(_line("the model", server.prompting, server.sampling, server=elsewhere))


def _line(
    where: str,
    prompting: Prompting,
    sampling: Sampling,
    temperatures: Sequence[float] = (),
    *,
    server: bool = False,
) -> str:
    """What is in force. server: the chat template is that of a server."""
    words = in_words(prompting).replace("the text as it is", "as it is")
    if server:
        words = words.replace("the chat template", "the server's chat template")
    return f"{where} reads each prompt {words}; {drawn_as(sampling, temperatures or (sampling.temperature,))}"


def drawn_as(sampling: Sampling, temperatures: Sequence[float]) -> str:
    """The distribution and its limits in words."""
    parts = [f"at most {sampling.max_new_tokens} new tokens"]
    parts += [f"temperature {', '.join(f'{t:g}' for t in temperatures)}"]
    parts += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    parts += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    parts += [f"stop at {', '.join(map(repr, sampling.stop))}"] if sampling.stop else []
    return ", ".join(parts)


def as_options(sampling: Sampling, prompting: Prompting) -> str:
    """Every setting that is not a default, and the number of new tokens, as options of a command line."""
    given = {"--chat": prompting.chat, "--sampling.max-new-tokens": sampling.max_new_tokens}
    for prefix, record, usual in (("", prompting, Prompting()), ("sampling.", sampling, Sampling())):
        for field in fields(record):
            value = getattr(record, field.name)
            if value != getattr(usual, field.name):
                given["--" + prefix + field.name.replace("_", "-")] = value
    return "".join(f" {option} {_words(value)}" for option, value in given.items())


def _words(value: Any) -> str:
    words = map(str, value if isinstance(value, tuple) else (value,))
    return shlex.join(word.replace("\n", "\\n").replace("\t", "\\t") for word in words)


class Counting:
    """An engine that counts the responses that the length limit cut."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.drawn, self.cut = engine, 0, 0

    def __call__(
        self, *given: Any, on_group: Callable[[Group], None] | None = None, **named: Any
    ) -> list[Group]:
        """As the engine."""

        def count(group: Group) -> None:
            self.drawn += group.size
            self.cut += int((~group.finished).sum())
            if on_group is not None:
                on_group(group)

        return self._engine(*given, on_group=count, **named)

    @property
    def share(self) -> float:
        """Of what was drawn."""
        return self.cut / max(1, self.drawn)


def warn_cut(share: float, limit: int, who: str = "") -> None:
    """Say so where many responses were cut, and how to change it."""
    if share > MOST_CUT:
        say(
            f"{who and f'{who}: '}{100 * share:.0f} % of the responses were cut at {limit} new tokens: "
            "raise --sampling.max-new-tokens, or name what ends them as --sampling.stop"
        )


def warn_cut_of(draw: Draw, who: str = "") -> None:
    """The same of what was drawn by a `Counting`."""
    if isinstance(draw.engine, Counting):
        warn_cut(draw.engine.share, draw.sampling.max_new_tokens, who)


def cut_share(groups: Iterable[Group]) -> float:
    """The share of responses that the length limit cut."""
    finished = [bool(each) for group in groups for each in group.finished]
    return 1 - sum(finished) / max(1, len(finished))
