"""Wrong responses made from right ones, for a verifier to learn from, as KnowTuning does (arXiv:2402.11176, section 3.2).

Of a right response some steps are deleted, a number or an operator is revised, or steps are shuffled. What comes of it
is judged by the truth like any other response: what is still right counts as right, what cannot be decided is left out.

Steps are lines, of code too; of one line its sentences, or equations that commas part; of one Python expression its
parts; of reverse Polish notation a number with the operator behind it.
"""

from __future__ import annotations

import ast
import copy
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bontune.verifiers.grading import Verify, judge_all
from bontune.verifiers.learned import Labelled

_TRIES = 8  # alterations tried for each that is wanted
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)")
# Between operands without spaces, or a word of its own that does not begin a line.
_OPERATOR = re.compile(
    r"(?<=[\d)\]])[-+*/×÷](?=[\d($])|(?<=\S )(?:[-+*/×÷]|[<>=!]=|[<>])(?!\S)|(?<=\d )x(?= \d)"
)
_FAMILIES = (("+", "-", "*", "/"), ("<", ">", "<=", ">="), ("==", "!="))
_ALIKE = {"×": "*", "x": "*", "÷": "/"}
_SENTENCE = re.compile(r"(?<=[.!?;])\s+")
_EQUATIONS = re.compile(r"[,;]\s+")

Alter = Callable[[str, str, random.Random], str | None]
"""(text, prompt text, rng) -> another text, or None where there is none of this kind."""


def delete_steps(text: str, prompt: str, rng: random.Random) -> str | None:
    """The text with one step left out, or of many up to half of them."""
    if (tree := _expression(text)) is not None:
        return _pick(_hoisted(tree), rng)
    steps, join = steps_of(text)
    if len(steps) < 2:
        return _without_pair(text, rng)
    gone = set(rng.sample(range(len(steps)), rng.randint(1, len(steps) // 2)))
    return join.join(step for i, step in enumerate(steps) if i not in gone)


def revise(text: str, prompt: str, rng: random.Random) -> str | None:
    """The text with one number or operator exchanged; half of the time a number is carried on where it comes again."""
    places = [*_NUMBER.finditer(text), *_OPERATOR.finditer(text)]
    if not places:
        return None
    place = rng.choice(places)
    old, (start, end) = place[0], place.span()
    if old[0].isdigit():
        new = _other_number(old, [*_NUMBER.findall(prompt), *_NUMBER.findall(text)], rng)
        rest = text[end:]
        if rng.random() < 0.5:
            rest = _NUMBER.sub(lambda match: new if match[0] == old else match[0], rest)
        return text[:start] + new + rest
    plain = _ALIKE.get(old, old)
    family = next(names for names in _FAMILIES if plain in names)
    return text[:start] + rng.choice([name for name in family if name != plain]) + text[end:]


def shuffle_steps(text: str, prompt: str, rng: random.Random) -> str | None:
    """The text with its steps in another order; the last of three or more, which says the answer, stays the last."""
    if (tree := _expression(text)) is not None:
        return _pick(_exchanged(tree), rng)
    steps, join = steps_of(text)
    if len(steps) < 2:
        return _pairs_exchanged(text, rng)
    moved, last = (steps[:-1], steps[-1:]) if len(steps) > 2 else (steps, [])
    return join.join([*rng.sample(moved, len(moved)), *last])


KINDS: dict[str, Alter] = {"deleted": delete_steps, "revised": revise, "shuffled": shuffle_steps}


def steps_of(text: str) -> tuple[list[str], str]:
    """(the steps of a text, what joins them): lines, else sentences, else equations; the text alone where it has
    none."""
    for steps, join in (
        (text.split("\n"), "\n"),
        (_SENTENCE.split(text), " "),
        (_EQUATIONS.split(text), ", "),
    ):
        told = [step for step in steps if step.strip()]
        if len(told) > 1 and (join != ", " or all("=" in step for step in told)):
            return told, join
    return [text], ""


def alter(text: str, prompt: str, rng: random.Random) -> tuple[str, str] | None:
    """(kind, altered text) by one of the kinds at random; None where that kind changes nothing here."""
    body = text.strip()
    kind = rng.choice(list(KINDS))
    found = KINDS[kind](body, prompt, rng) if body else None
    if found is None or found == body or not found.strip():
        return None
    start = text.index(body)
    return kind, text[:start] + found + text[start + len(body) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was made from right responses and judged.

    wanted: how many it should have been.  made: how many it was.  right: of them still right.  undecided: of them
    without a verdict, left out.  kinds: {kind: (made, wrong)}.
    """

    wanted: int
    made: int
    right: int
    undecided: int
    kinds: dict[str, tuple[int, int]]


def with_negatives(
    labelled: Sequence[Labelled], share: float, verify: Verify, *, seed: int = 0
) -> tuple[list[Labelled], Made]:
    """The labels with others made from the right responses, so that these are `share` of all that were judged.

    They are spread evenly over the prompts that have a right response. Each counts as drawn 0 times: calibration is
    on what the policy draws. Raises ValueError for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"negatives must be a share of at least 0 and below 1, got {share}")
    wanted = round(share / (1 - share) * sum(len(item.texts) for item in labelled))
    new: dict[int, list[tuple[str, str]]] = {i: [] for i, item in enumerate(labelled) if any(item.right)}
    streams = {i: random.Random(f"negatives {seed} {labelled[i].prompt.id}") for i in new}
    active = list(new)
    random.Random(seed).shuffle(active)
    while active and (missing := wanted - sum(map(len, new.values()))) > 0:
        each, more = divmod(missing, len(active))
        quotas = [each + (place < more) for place in range(len(active))]
        found = {
            i: _altered(labelled[i], new[i], count, streams[i])
            for i, count in zip(active, quotas, strict=True)
            if count
        }
        for i, items in found.items():
            new[i] += items
        active = [i for i, count in zip(active, quotas, strict=True) if len(found.get(i, ())) == count]
    results, counts, kinds = list(labelled), Counter[str](), {kind: [0, 0] for kind in KINDS}
    for i, items in new.items():
        results[i] = _joined(labelled[i], items, verify, counts, kinds)
    return results, Made(
        wanted=wanted,
        made=sum(map(len, new.values())),
        right=counts["right"],
        undecided=counts["undecided"],
        kinds={kind: (made, wrong) for kind, (made, wrong) in kinds.items()},
    )


def _altered(
    item: Labelled, before: Sequence[tuple[str, str]], count: int, rng: random.Random
) -> list[tuple[str, str]]:
    """Up to `count` new texts with their kinds, none of them known already."""
    sources = [text for text, right in zip(item.texts, item.right, strict=True) if right]
    known = {*item.texts, *(text for _, text in before)}
    found: list[tuple[str, str]] = []
    for _ in range(_TRIES * count):
        made = alter(rng.choice(sources), item.prompt.text, rng)
        if made is not None and made[1] not in known:
            known.add(made[1])
            found.append(made)
        if len(found) == count:
            break
    return found


def _joined(
    item: Labelled,
    made: Sequence[tuple[str, str]],
    verify: Verify,
    counts: Counter[str],
    kinds: dict[str, list[int]],
) -> Labelled:
    """The labels with those of the made responses, which are judged and counted."""
    texts, right = [], []
    verdicts = judge_all(item.prompt, [text for _, text in made], verify)
    for (kind, text), verdict in zip(made, verdicts, strict=True):
        kinds[kind][0] += 1
        if verdict.reward is None:
            counts["undecided"] += 1
            continue
        is_right = verdict.reward > 0.5
        counts["right"] += is_right
        kinds[kind][1] += not is_right
        texts.append(text)
        right.append(is_right)
    return replace(
        item,
        texts=(*item.texts, *texts),
        right=(*item.right, *right),
        counts=(*item.counts, *([0] * len(texts))),
    )


def _other_number(old: str, near: Sequence[str], rng: random.Random) -> str:
    """Another number: half of the time one of the prompt or the response, else one close by."""
    others = [number for number in near if number != old]
    if others and rng.random() < 0.5:
        return rng.choice(others)
    if "." in old:
        return f"{float(old) + rng.choice((-1, 1)) * rng.choice((0.1, 0.5, 1)):.{len(old.split('.')[1])}f}".lstrip(
            "-"
        )
    return str(abs(int(old) + rng.choice((-2, -1, 1, 2)))) if old != "0" else str(rng.randint(1, 3))


# Reverse Polish notation, and whatever else has numbers with an operator behind.


def _pairs(words: Sequence[str]) -> list[int]:
    """Where a number stands with an operator behind it."""
    return [
        i for i in range(1, len(words) - 1) if _NUMBER.fullmatch(words[i]) and words[i + 1] in _FAMILIES[0]
    ]


def _without_pair(text: str, rng: random.Random) -> str | None:
    words = text.split(" ")
    places = _pairs(words)
    if not places:
        return None
    place = rng.choice(places)
    return " ".join(words[:place] + words[place + 2 :])


def _pairs_exchanged(text: str, rng: random.Random) -> str | None:
    words = text.split(" ")
    places = _pairs(words)
    if len(places) < 2:
        return _numbers_exchanged(words, rng)
    a, b = sorted(rng.sample(places, 2))
    if b < a + 2:
        return None
    return " ".join([*words[:a], *words[b : b + 2], *words[a + 2 : b], *words[a : a + 2], *words[b + 2 :]])


def _numbers_exchanged(words: list[str], rng: random.Random) -> str | None:
    """Two operands in each other's place, of an expression that has one step of its own at most."""
    places = [i for i, word in enumerate(words) if _NUMBER.fullmatch(word)]
    if len(places) < 2 or not set(words) & set(_FAMILIES[0]):
        return None
    a, b = rng.sample(places, 2)
    words = list(words)
    words[a], words[b] = words[b], words[a]
    return " ".join(words)


# One Python expression: a step is a call, an index, an operation, or a condition around something.


def _expression(text: str) -> ast.expr | None:
    """The tree of a text that is one Python expression of more than a name or a number."""
    if "\n" in text or len(text) > 2000:
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return None if isinstance(tree, ast.Name | ast.Constant | ast.Tuple) else tree


def _pick(trees: Iterator[ast.expr], rng: random.Random) -> str | None:
    found = list(trees)
    return ast.unparse(rng.choice(found)) if found else None


def _slot(node: ast.AST) -> tuple[ast.AST, str] | None:
    """(object, attribute) that holds what this step is done to; None where the node is no such step."""
    if isinstance(node, ast.Subscript):
        return node, "value"
    if isinstance(node, ast.ListComp):
        return node.generators[0], "iter"
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        return node, "args"
    return None


def _inner(node: ast.AST) -> ast.expr | None:
    slot = _slot(node)
    if slot is None:
        return None
    held = getattr(*slot)
    return held[0] if isinstance(held, list) else held


def _put(node: ast.AST, held: ast.expr) -> None:
    slot = _slot(node)
    assert slot is not None
    setattr(*slot, [held] if slot[1] == "args" else held)


def _hoisted(tree: ast.expr) -> Iterator[ast.expr]:
    """The tree with one step left out, in every way."""
    for i, node in enumerate(ast.walk(tree)):
        left = [child for child in (_inner(node),) if child is not None]
        if isinstance(node, ast.BinOp):
            left += [node.left, node.right]
        elif isinstance(node, ast.IfExp):
            left += [node.body, node.orelse]
        for child in left:
            yield _replaced(tree, i, child)
        if isinstance(node, ast.ListComp) and node.generators[0].ifs:
            less = copy.deepcopy(node)
            less.generators[0].ifs = []
            yield _replaced(tree, i, less)


def _exchanged(tree: ast.expr) -> Iterator[ast.expr]:
    """The tree with two steps in each other's place, in every way: one around another, or the sides of an operator."""
    for i, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.BinOp):
            turned = copy.deepcopy(node)
            turned.left, turned.right = turned.right, turned.left
            yield _replaced(tree, i, turned)
        outer, held = copy.deepcopy(node), _inner(node)
        within = None if held is None else _inner(held)
        if isinstance(outer, ast.expr) and held is not None and within is not None:
            inner = copy.deepcopy(held)
            _put(outer, copy.deepcopy(within))
            _put(inner, outer)
            yield _replaced(tree, i, inner)


def _replaced(tree: ast.expr, place: int, new: ast.expr) -> ast.expr:
    """A copy of the tree with another node in the place of the one that `ast.walk` comes to at `place`."""
    target = next(node for i, node in enumerate(ast.walk(tree)) if i == place)

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return new if node is target else super().visit(node)

    memo: dict[int, object] = {id(target): target}  # the copy holds the very node that is looked for
    found = Replace().visit(copy.deepcopy(tree, memo))
    assert isinstance(found, ast.expr)
    return found
