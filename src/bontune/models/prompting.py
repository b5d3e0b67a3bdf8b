"""The prompt as a model reads it: the one place where texts and conversations become token ids.

Engines, scorers, serving and training all go through `shown` and `encode`, so that a served prompt and a trained one
have the very same ids. The text of a prompt stays what it is: nobody can put it into a template a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from bontune.config import Prompting
from bontune.records import Prompt, Sampling

NEW_TOKENS = 512  # the most that are drawn where nobody says how many
_MARK = "\u2063reply\u2063"  # stands for a response where its end is looked for
Message = dict[str, str]


def in_force(prompting: Prompting, tokenizer: Any) -> Prompting:
    """The same settings with `chat` decided: "on" or "off".

    Raises ValueError where they need a chat template and the tokenizer has none.
    """
    has = bool(getattr(tokenizer, "chat_template", None))
    chat = prompting.chat if prompting.chat != "auto" else ("on" if has else "off")
    needing = {"chat": "on" if chat == "on" else None, "system": prompting.system}
    for name, value in (needing | {"template_args": prompting.template_args}).items():
        if value and not has:
            raise ValueError(
                f"{name} = {value!r} needs a chat template, and the model's tokenizer has none: leave "
                f"--{name.replace('_', '-')} out, or write the prompt's form as --prompt-template"
            )
    return replace(prompting, chat=chat)


def in_words(prompting: Prompting) -> str:
    """What a model reads for a prompt, in a line; prompting: decided, see `in_force`."""
    parts = ["within the chat template" if prompting.chat == "on" else "the text as it is"]
    for name, value in (("system message", prompting.system), ("put into", prompting.prompt_template)):
        parts += [] if value is None else [f"{name} {value!r}"]
    parts += [" ".join(prompting.template_args)] if prompting.template_args else []
    parts += [f"the reply begun with {prompting.reply_start!r}"] if prompting.reply_start else []
    parts += [f"reasoning between {' and '.join(pair)}" for pair in prompting.markers()]
    return ", ".join(parts)


def shown(prompts: Sequence[Prompt], tokenizer: Any, prompting: Prompting) -> list[Prompt]:
    """The prompts with the token ids that a model reads; those that have ids keep them, and so do plain texts.

    They know what sets reasoning apart, see `marked`. Raises ValueError, naming the prompt and the option, where the chat
    template refuses a message or there is none.
    """
    prompting, prompts = in_force(prompting, tokenizer), marked(prompts, prompting)
    if prompting.plain and not any("messages" in prompt.meta for prompt in prompts):
        return prompts
    ready = [i for i, prompt in enumerate(prompts) if prompt.tokens is None]
    texts = [rendered(prompts[i], tokenizer, prompting) for i in ready]
    encode_all = _templated_ids if prompting.chat == "on" else _plain_ids
    found = list(prompts)
    for i, ids in zip(ready, encode_all(tokenizer, texts), strict=True):
        found[i] = replace(prompts[i], tokens=tuple(ids))
    return found


def marked(prompts: Sequence[Prompt], prompting: Prompting) -> list[Prompt]:
    """The prompts with the reasoning markers in `meta["reasoning_markers"]`, where whatever reads responses looks."""
    if not (markers := prompting.markers()):
        return list(prompts)
    return [replace(prompt, meta={**prompt.meta, "reasoning_markers": markers}) for prompt in prompts]


def rendered(prompt: Prompt, tokenizer: Any, prompting: Prompting) -> str:
    """The text that a model reads, where the tokenizer puts no begin token of its own before it.

    prompting: decided, see `in_force`.  Raises ValueError as `shown`.
    """
    messages, begun = conversation(prompt, prompting), prompting.reply_start or ""
    if prompting.chat == "on":
        return _template(tokenizer, messages, prompting, prompt.id) + begun
    if len(messages) > 1 or messages[0]["role"] != "user":
        raise ValueError(
            f"prompt {prompt.id[:100]!r} is a conversation of {len(messages)} messages, but the model has no chat "
            "template, or --chat is off: a single message of the user is all that can be read as it is"
        )
    return messages[0]["content"] + begun


def conversation(prompt: Prompt, prompting: Prompting) -> list[Message]:
    """The messages of a prompt, with the system message and the form that the settings ask for."""
    given = prompt.meta.get("messages") or [{"role": "user", "content": prompt.text}]
    messages = [dict(message) for message in given]
    asked = [message for message in messages if message["role"] == "user"]
    if prompting.prompt_template is not None and asked:
        asked[-1]["content"] = prompting.prompt_template.replace("{prompt}", asked[-1]["content"])
    if prompting.system is not None and messages[0]["role"] not in ("system", "developer"):
        messages.insert(0, {"role": "system", "content": prompting.system})
    return messages


def row_of(prompt: Prompt, tokenizer: Any, prompting: Prompting) -> dict[str, Any]:
    """A row of a data set for TRL or verl that these turn into the same token ids: `prompt`, a conversation or a text,
    and `chat_template_kwargs` where the template is told something besides.

    Raises ValueError for `reply_start`, which their data sets cannot say of a conversation.
    """
    prompting = in_force(prompting, tokenizer)
    if prompting.chat == "off":
        return {"prompt": rendered(prompt, tokenizer, prompting)}
    if prompting.reply_start:
        raise ValueError(
            f"reply_start = {prompting.reply_start!r}: a conversation in a data set cannot begin the reply"
        )
    arguments = prompting.arguments()
    more = {"chat_template_kwargs": arguments} if arguments else {}
    return {"prompt": conversation(prompt, prompting), **more}


def encode(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], sampling: Sampling
) -> list[tuple[int, ...]]:
    """Token ids of each prompt: its own where it has them, else of its text, with the tokenizer's own special tokens but
    no end token.

    Raises ValueError on an empty prompt, and on one that with its response exceeds the model's context.
    """
    return encode_each(model, tokenizer, prompts, [sampling.max_new_tokens] * len(prompts))


def encode_each(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], most: Sequence[int]
) -> list[tuple[int, ...]]:
    """`encode` of prompts whose responses have at most `most` tokens, each a limit of its own."""
    limit = context_of(model)
    encoded = token_ids(tokenizer, prompts, end_tokens(model, tokenizer))
    for prompt, ids, new in zip(prompts, encoded, most, strict=True):
        if not ids:
            raise ValueError(f"prompt {prompt.id[:100]!r} has no tokens: {prompt.text[:100]!r}")
        if limit is not None and len(ids) + new > limit:
            raise ValueError(
                f"prompt {prompt.id[:100]!r} has {len(ids)} tokens; with max_new_tokens = {new} "
                f"that exceeds the model's context of {limit}. Shorten the prompt or lower max_new_tokens "
                "(--sampling.max-new-tokens)"
            )
    return encoded


def token_ids(
    tokenizer: Any, prompts: Sequence[Prompt], ends: frozenset[int] = frozenset()
) -> list[tuple[int, ...]]:
    """The ids of each prompt, as `encode`, whatever the model's context. ends: taken off the end of a text, beside the
    tokenizer's own end token."""
    texts = [prompt.text for prompt in prompts if prompt.tokens is None]
    plain = iter(_plain_ids(tokenizer, texts, ends))
    return [prompt.tokens if prompt.tokens is not None else tuple(next(plain)) for prompt in prompts]


def context_of(model: Any) -> int | None:
    """Tokens that the model can read, its own included; None where its config does not say."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(config, "max_position_embeddings", None)


def budget_of(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> int:
    """How many new tokens are drawn where nobody says: 512, or what the context leaves after the longest prompt.

    Without prompts half of the context is kept for them. Raises ValueError where a prompt leaves no room at all.
    """
    limit = context_of(model)
    if limit is None:
        return NEW_TOKENS
    if not prompts:
        return max(1, min(NEW_TOKENS, limit // 2))
    longest, prompt = max(
        ((len(ids), p) for ids, p in zip(token_ids(tokenizer, prompts), prompts, strict=True)),
        key=lambda e: e[0],
    )
    if longest >= limit:
        raise ValueError(
            f"prompt {prompt.id[:100]!r} has {longest} tokens, which leaves no room for a response in the model's "
            f"context of {limit}. Shorten the prompt"
        )
    return min(NEW_TOKENS, limit - longest)


def end_tokens(model: Any, tokenizer: Any, sampling: Sampling | None = None) -> frozenset[int]:
    """Tokens that end a response: those of config, generation config and tokenizer, the one that ends a turn in the
    chat template, and stop strings that are special tokens."""
    found = {*_named(getattr(model, "generation_config", None)), *_named(getattr(model, "config", None))}
    found |= {tokenizer.eos_token_id, _turn_end(tokenizer)}
    for stop in sampling.stop if sampling is not None else ():
        found.add(_special(tokenizer, stop))
    return frozenset(int(token) for token in found if token is not None)


def end_of_reply(tokenizer: Any, prompting: Prompting) -> int | None:
    """The token that a finished response ends with: the chat template's where it is in force, else the tokenizer's."""
    if in_force(prompting, tokenizer).chat == "on" and (end := _turn_end(tokenizer)) is not None:
        return end
    return tokenizer.eos_token_id


def ignored_defaults(model: Any, sampling: Sampling) -> dict[str, Any]:
    """What the model's generation config would sample with and these settings do not."""
    config = getattr(model, "generation_config", None)
    known = config.to_diff_dict() if config is not None else {}
    ours = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    ours |= {"repetition_penalty": 1.0, "min_p": 0.0}
    return {name: known[name] for name, value in ours.items() if known.get(name) not in (None, value)}


def _named(config: Any) -> set[Any]:
    named = getattr(config, "eos_token_id", None)
    return set(named) if isinstance(named, list | tuple) else {named}


def _special(tokenizer: Any, text: str) -> int | None:
    """The id of a special token by its text, None where it is none."""
    known = getattr(tokenizer, "added_tokens_decoder", {})
    special = (i for i, token in known.items() if token.content == text and token.special)
    return next(special, None)


def _turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template puts behind a reply; None without a template, or where it puts none."""
    template = getattr(tokenizer, "chat_template", None)
    return _found_turn_end(tokenizer, str(template)) if template else None


@lru_cache(maxsize=16)
def _found_turn_end(tokenizer: Any, template: str) -> int | None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template that takes no such conversation says nothing of its end
        return None
    ids = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"] if _MARK in text else []
    special = set(tokenizer.all_special_ids) | {
        i for i, t in tokenizer.added_tokens_decoder.items() if t.special
    }
    return ids[0] if ids and ids[0] in special else None


def _template(tokenizer: Any, messages: Sequence[Message], prompting: Prompting, name: str) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **prompting.arguments()
        )
    except Exception as fault:  # templates refuse what they do not know, each by errors of its own
        roles = {message["role"] for message in messages}
        hint = (
            "leave --system out, or say it in --prompt-template"
            if prompting.system and "system" in roles
            else ("--chat off reads a single message as it is")
        )
        raise ValueError(
            f"prompt {name[:100]!r}: the tokenizer's chat template refuses its messages ({', '.join(sorted(roles))}): "
            f"{' '.join(str(fault).split())[:300]}; {hint}"
        ) from fault


def _templated_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts that hold their special tokens, with the one begin token that the tokenizer wants."""
    if not texts:
        return []
    begin = _begin(tokenizer)
    given = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [ids if begin is None else [begin, *_without(list(ids), begin)] for ids in given]


def _plain_ids(tokenizer: Any, texts: Sequence[str], ends: frozenset[int] = frozenset()) -> list[list[int]]:
    """Ids of texts, with the tokenizer's own special tokens, one begin token at most, and no end token."""
    if not texts:
        return []
    begin, ends = _begin(tokenizer), ends | {tokenizer.eos_token_id}
    found = []
    for text, whole in zip(texts, tokenizer(list(texts))["input_ids"], strict=True):
        ids = list(whole)
        while ids and ids[-1] in ends:
            ids.pop()
        if text.strip() and not ids:  # the text is the end token, which also begins texts for some models
            ids = list(whole[:1])
        if begin is not None and ids[:2] == [begin, begin]:  # the text begins with it, too
            ids = [begin, *_without(ids, begin)]
        found.append(ids)
    return found


def _without(ids: list[int], begin: int) -> list[int]:
    """The ids without the begin tokens before them."""
    first = next((i for i, token in enumerate(ids) if token != begin), len(ids))
    return ids[first:]


def _begin(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before every text; None where it puts none."""
    begin = tokenizer.bos_token_id
    return begin if begin is not None and list(tokenizer("")["input_ids"])[:1] == [begin] else None
