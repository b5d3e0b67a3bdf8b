"""The program that a response to a coding prompt gives: one function finds it, and everything that runs programs uses it.

Models write a continuation of the prompt, a body, or a whole program; fenced or not, once or in several versions, with
helpers elsewhere and examples behind. Sources are parsed here and never run.
"""

from __future__ import annotations

import ast
import re
import symtable
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bontune.tasks.final import REASONING, final_part

_LONGEST = (
    200_000  # characters of a response that is looked through; a longer one is the prompt's continuation
)
_MOST_FENCES = 60  # up to which a block is looked for that has fences in its texts
_MOST_TRIES = 300  # to complete statements with lines at the left edge, in a text that is not all code
_MOST_PARTS = 40  # of one such statement
_MOST_CUTS = 30  # places where what follows a body is cut off
_MARKER = re.compile(
    r"\s*(?:>\s?)*(?:(?:[-*+]|\d{1,3}[.)])\s+)?(?:`{3,}|~{3,}(?=\s*[\w{.]*\s*$))(?P<after>.*)"
    r"|\s*(?:\[/?(?:PYTHON|CODE|BEGIN|DONE|SOLUTION)\]|</?(?:pre|code)\b[^<>]{0,80}>)+(?P<behind>.*)"
)
_CODE = re.compile(
    r"\b(?:def|lambda|return|import|class|yield)\b"
)  # in a line that is more than a fence's tag
_TAG = re.compile(r"\s*(?:python\d?|py\d?)\b(?!\s*=)", re.IGNORECASE)
_DEFINITION = re.compile(r"(?:async\s+)?def\s|class\s|@|import\s|from\s")
_SPAN = re.compile(r"(?<!`)`([^`\n]{1,500})`(?!`)")
_ODD_INDENT = re.compile(r"^[ \u00a0\u200b\u3000]*[\u00a0\u200b\u3000][ \u00a0\u200b\u3000]*", re.MULTILINE)
_QUOTE = re.compile(r"\s*>(?!>) ?")
_STARTS = re.compile(  # a line that may begin a statement, unlike most sentences
    r"@|(?:async\s+)?def\s|class\s|import\s|from\s+[\w.]+\s+import\b|(?:if|for|while|with|try|match)\b|[\"'#]"
    r"|[\w.]+(?:\[[^\]]*\])?(?:\s*,\s*\w+)*\s*(?::[^=]+)?[-+*/|&]?=|[\w.]+\("
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (*_FUNCTIONS, ast.ClassDef, ast.Lambda)
_EXAMPLE = {"print", "input", "unittest", "doctest", "pytest"}  # what examples of use, and nothing else, need


@dataclass(frozen=True, slots=True)
class _Block:
    """Python text that parses, and its statements."""

    source: str
    body: tuple[ast.stmt, ...]

    def lines(self, node: ast.stmt) -> range:
        """Line numbers of a statement, from 1, decorators included."""
        first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", ()))])
        return range(first, (node.end_lineno or first) + 1)


def program_of(
    prompt_text: str, response: str, entry_point: str, marks: Sequence[tuple[str, str]] = REASONING
) -> str:
    """The program that is run for a response: the last complete version of the function, with what it needs.

    Reasoning is left out. A block, fenced or not, that defines the function is taken with the definitions of other blocks
    that it uses, and with imports and helpers of the prompt; else the response, or its block, is the body of the prompt's
    function. A method of a class is reachable by its name. Examples of use behind the function are dropped, unless the
    response continues the prompt as it is. Where nothing of that fits, prompt and response are joined as they are;
    reasoning that never ends gives "".

    entry_point: the function's name, or an expression such as "Solution().solve".
    marks: what opens and what closes reasoning, see `bontune.tasks.final.final_part`.
    """
    if len(response) > _LONGEST:
        return prompt_text + response
    name = re.split(r"\W", entry_point.strip(), maxsplit=1)[0]
    text = _final(prompt_text, response, name, marks)
    if text is None:
        return ""
    text = _ODD_INDENT.sub(
        lambda match: " " * len(match[0]), text.replace("\r\n", "\n").replace("\ufeff", "")
    )
    segments = _segments(text)
    plain = [(line, segment) for line, segment in segments if not _is_body(segment)]
    placed = [(line, block) for line, segment in plain for block in _blocks(segment)] + list(
        _spanning(text, name)
    )
    blocks = [block for _, block in sorted(placed, key=lambda place: place[0])]
    texts = [segment for _, segment in segments]
    found = _defining(blocks, name) or _continued(prompt_text, texts, name)
    if found is None:
        spans = _SPAN.findall(text)
        blocks += [block for segment in (*texts, *spans) for block in _runs(segment)]
        found = _defining(blocks, name) or _continued(prompt_text, spans, name)
    if found is None:
        return prompt_text + text
    as_it_is = found.source == prompt_text + text
    return _assembled(found, [block for block in blocks if block is not found], prompt_text, name, as_it_is)


def _final(prompt_text: str, response: str, name: str, marks: Sequence[tuple[str, str]]) -> str | None:
    """The response without its reasoning; a program that speaks of such tags is one already."""
    text = final_part(response, marks, prompt=prompt_text)
    if text != response:
        for source in (response, prompt_text + response):
            block = _block(source)
            if block is not None and _defining([block], name) is not None:
                return response
    return text


# Pieces of a text.


def _segments(text: str) -> list[tuple[int, str]]:
    """What stands before, between and behind fences, opened or closed, with the number of its first line."""
    segments: list[tuple[int, list[str]]] = [(0, [])]
    for number, line in enumerate(text.split("\n")):
        rest = line
        while (split := _at_fence(rest)) is not None:
            before, rest = split
            if before.strip():
                segments[-1][1].append(before)
            segments.append((number, []))
        if rest.strip() or rest == line:
            segments[-1][1].append(rest)
    last = len(segments) - 1
    return [
        (start, _unquoted(lines if i == last else [*lines, ""])) for i, (start, lines) in enumerate(segments)
    ]


def _at_fence(line: str) -> tuple[str, str] | None:
    """(what stands before, the code behind) the first fence of a line; None where there is none."""
    match = _MARKER.match(line)
    if match is not None:
        before, after = "", match["after"] if match["after"] is not None else match["behind"]
    elif "```" in line:
        before, _, after = line.partition("```")
        after = after.lstrip("`")
    else:
        return None
    code, fence, rest = after.partition("```")
    return before, (_TAG.sub("", code, count=1).lstrip() if _CODE.search(code) else "") + fence + rest


def _unquoted(lines: Sequence[str]) -> str:
    """The lines, without the sign of a quotation where all have it."""
    if all(_QUOTE.match(line) for line in lines if line.strip()):
        lines = [_QUOTE.sub("", line, count=1) for line in lines]
    return "\n".join(lines)


def _blocks(segment: str) -> list[_Block]:
    """The code of a segment: the whole of it, or what stands in it between sentences."""
    whole = _block(segment) or _block(textwrap.dedent(segment))
    if whole is not None and not any(map(_is_word, whole.body)):
        return [whole]
    found = list(_runs(segment)) or list(_runs(textwrap.dedent(segment)))
    return found or [block for part in _indented_parts(segment) for block in _runs(textwrap.dedent(part))]


def _indented_parts(segment: str) -> list[str]:
    """The indented parts of a text, as Markdown has code without fences."""
    parts = [""]
    for line in segment.splitlines(keepends=True):
        if line.strip() and line[0] not in " \t":
            parts.append("")
        else:
            parts[-1] += line
    return [part for part in parts if part.strip()] if len(parts) > 1 else []


def _spanning(text: str, name: str) -> Iterator[tuple[int, _Block]]:
    """Blocks with fences in their texts, such as a docstring in Markdown, with their first lines."""
    lines = text.split("\n")
    marks = [number for number, line in enumerate(lines) if _at_fence(line) is not None]
    if len(marks) > _MOST_FENCES or not re.search(r"\"\"\"|'''|['\"][^'\"]*```|#.*```", text):
        return
    for k, start in enumerate([-1, *marks]):
        for end in [*marks[k:], len(lines)][1:]:
            block = _block(textwrap.dedent("\n".join(lines[start + 1 : end])))
            if block is not None and name in _bound(block.body):
                yield start, block
                break


def _runs(text: str) -> Iterator[_Block]:
    """Statements that follow each other directly; sentences, and what is cut off, end a run."""
    chunks, left, run = _chunks(text), _MOST_TRIES, list[str]()
    at = 0
    while at < len(chunks):
        size, tried = _statement(chunks, at, min(_MOST_PARTS, left))
        left -= tried
        if size:
            run += chunks[at : at + size]
        elif run:
            yield from _nonempty("".join(run))
            run = []
        at += max(1, size)
    if run:
        yield from _nonempty("".join(run))


def _statement(chunks: Sequence[str], at: int, most: int) -> tuple[int, int]:
    """(how many chunks from `at` are code, 0 where none; how many more than one were tried)."""
    if not _STARTS.match(chunks[at]):
        return 0, 0
    tried = 0
    for size in range(1, 1 + max(1, min(len(chunks) - at, most))):
        tried = size - 1
        block = _block("".join(chunks[at : at + size]))
        if block is not None:
            return (0 if any(map(_is_word, block.body)) else size), tried
    return 0, tried


def _chunks(text: str) -> list[str]:
    """The text cut before each line that begins at its left edge, but for one that goes on with a statement."""
    goes_on = re.compile(r"[)\]}]|(?:else|elif|except|finally|case)\b")
    chunks: list[str] = []
    for line in text.splitlines(keepends=True):
        if chunks and (not line.strip() or line[0] in " \t" or goes_on.match(line)):
            chunks[-1] += line
        else:
            chunks.append(line)
    return chunks


def _nonempty(source: str) -> Iterator[_Block]:
    block = _block(source)
    if block is not None and block.body:
        yield block


# Python text.


def _block(source: str) -> _Block | None:
    """The block of a text that is Python; None where it is not, or could stand in a function only."""
    body = _parsed(source)
    return None if body is None or _returns(body) else _Block(source, tuple(body))


def _parsed(source: str) -> list[ast.stmt] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _returns(body: Sequence[ast.stmt]) -> bool:
    """Whether the statements could stand in a function only, or are a fence that happens to be Python."""
    nodes = _outside(body, (*_FUNCTIONS, ast.Lambda))
    return any(isinstance(node, ast.Return | ast.Yield | ast.YieldFrom) or _is_tildes(node) for node in nodes)


def _is_tildes(node: ast.AST) -> bool:
    """Whether this is ~~x, a fence that happens to be Python."""
    match node:
        case ast.UnaryOp(op=ast.Invert(), operand=ast.UnaryOp(op=ast.Invert())):
            return True
    return False


def _outside(body: Iterable[ast.AST], closed: tuple[type[ast.AST], ...]) -> Iterator[ast.AST]:
    """All nodes but those within nodes of the kinds `closed`."""
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, closed):
            waiting += ast.iter_child_nodes(node)


def _bound(body: Iterable[ast.stmt]) -> set[str]:
    """Names that the statements bind for the whole module."""
    names: set[str] = set()
    for node in _outside(body, _SCOPES):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
    return names


def _wanted(source: str) -> set[str]:
    """Names that a text looks up in its module."""
    try:
        waiting, names = [symtable.symtable(source, "<response>", "exec")], set[str]()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                names.add(symbol.get_name())
    return names


def _used(nodes: Iterable[ast.AST]) -> set[str]:
    """Names that stand in a text to be read, local ones included."""
    return {
        node.id
        for tree in nodes
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def _is_word(node: ast.stmt) -> bool:
    """Whether a statement is likely a word or a number of a sentence, not code."""
    if not isinstance(node, ast.Expr) or (
        isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ):
        return False
    return not any(isinstance(part, ast.Call | ast.Await) for part in ast.walk(node))


def _is_stub(node: ast.AST) -> bool:
    """A function or class without anything in it but a docstring, imports, `pass`, `...` or NotImplementedError."""

    def empty(item: ast.stmt) -> bool:
        constant = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
        missing = isinstance(item, ast.Raise) and "NotImplementedError" in _used([item])
        return constant or missing or isinstance(item, ast.Pass | ast.Import | ast.ImportFrom)

    if isinstance(node, ast.ClassDef):
        return all(empty(item) or (isinstance(item, _FUNCTIONS) and _is_stub(item)) for item in node.body)
    return isinstance(node, _FUNCTIONS) and all(map(empty, node.body))


# The block that defines the function, and bodies of it.


def _defining(blocks: Sequence[_Block], name: str) -> _Block | None:
    """The last block that defines the name completely; else the last that has it as a method, else any other."""
    defining = [block for block in blocks if name in _bound(block.body)]
    complete = [block for block in defining if _is_complete(block, name)]
    methods = [block for block in blocks if _class_with(block, name) is not None]
    return next((found[-1] for found in (complete, methods, defining) if found), None)


def _is_complete(block: _Block, name: str) -> bool:
    """Whether the last definition of the name is no stub, is not of another file, and needs no earlier one elsewhere."""
    nodes = [node for node in block.body if name in _bound([node])]
    match nodes[-1]:
        case ast.ImportFrom(module=module):
            return module in sys.stdlib_module_names
        case ast.Import():
            return False
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign() if len(nodes) == 1:
            return name not in _wanted_by(nodes[0])
    return not _is_stub(nodes[-1])


def _wanted_by(node: ast.stmt) -> set[str]:
    """Names that a statement reads when it is run, not later within its lambdas."""
    inner = _outside([node], (*_FUNCTIONS, ast.Lambda))
    return {item.id for item in inner if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Load)}


def _definition(block: _Block, name: str) -> ast.stmt:
    """The last statement that binds the name."""
    return [node for node in block.body if name in _bound([node])][-1]


def _class_with(block: _Block, name: str) -> str | None:
    """The last class that has a method of that name, which is no stub."""
    for node in reversed(block.body):
        if isinstance(node, ast.ClassDef) and any(
            isinstance(item, _FUNCTIONS) and item.name == name and not _is_stub(item) for item in node.body
        ):
            return node.name
    return None


def _continued(prompt_text: str, segments: Sequence[str], name: str) -> _Block | None:
    """The prompt's function with the response, or a part of it, as its body."""
    heads = list(_heads(prompt_text, name))
    if len(segments) == 1 and (block := _block(prompt_text + segments[0])) and _is_whole(block, name):
        return block
    for certain in (True, False):
        for segment in reversed(segments):
            if _is_body(segment) is certain and segment.strip():
                for head, indent in heads:
                    found = _with_body(head, indent, segment, name)
                    if found is not None:
                        return found
    return None


def _is_body(segment: str) -> bool:
    """Whether a text can stand in a function only: it returns, or begins with an indent and is no block by itself."""
    plain = textwrap.dedent(segment)
    parsed = _parsed(plain)
    if parsed is not None:
        return _returns(parsed)
    lines = [line for line in segment.split("\n") if line.strip()]
    if not lines or _DEFINITION.match(lines[0].lstrip()):
        return False
    later = textwrap.dedent("\n".join(lines[1:]))  # the first line may have lost its indent
    return lines[0][0] in " \t" or any(
        re.search(r"^(?:return|yield)\b", text, re.MULTILINE) for text in (plain, later)
    )


def _heads(prompt_text: str, name: str) -> Iterator[tuple[str, str]]:
    """(text that ends with the open function, the indent of its body), of a prompt that is code or has it in a fence."""
    for text in (prompt_text, *(segment for _, segment in reversed(_segments(prompt_text)))):
        for source in (text.rstrip() + "\n", textwrap.dedent(text).rstrip() + "\n"):
            block = _block(source) or _block(source + _indent_of(source) + "pass")
            if block is None or not block.body:
                continue
            last = block.body[-1]
            if isinstance(last, ast.ClassDef) and last.body:
                last = last.body[-1]
            if isinstance(last, _FUNCTIONS) and (last.name == name or _is_stub(last)):
                yield (
                    source if source.strip() != prompt_text.strip() else prompt_text,
                    _body_indent(last, source),
                )
                break


def _indent_of(source: str) -> str:
    """What indents a body behind the last line."""
    line = source.rstrip().rsplit("\n", 1)[-1]
    return line[: len(line) - len(line.lstrip())] + "    "


def _body_indent(function: ast.FunctionDef | ast.AsyncFunctionDef, source: str) -> str:
    first = function.body[0]
    lines = source.split("\n")
    if first.lineno > len(lines) or not lines[first.lineno - 1].strip():
        return _indent_of(source)
    line = lines[first.lineno - 1]
    indent = line[: len(line) - len(line.lstrip())]
    return indent if first.lineno > function.lineno else indent + "    "


def _with_body(head: str, indent: str, segment: str, name: str) -> _Block | None:
    """Head and body, whatever the body's indent, without sentences before it and behind it."""
    glue = "" if head.endswith("\n") else "\n"
    for body in _cuts(segment):
        for source in (
            head + body,
            head + glue + body,
            *(head + glue + text for text in _indented(body, indent)),
        ):
            block = _block(source)
            if block is not None and _is_whole(block, name):
                return block
    return None


def _is_whole(block: _Block, name: str) -> bool:
    """Whether the function is there and has a body."""
    if _class_with(block, name) is not None:
        return True
    return name in _bound(block.body) and not _is_stub(_definition(block, name))


def _cuts(segment: str) -> Iterator[str]:
    """The text; then without what follows its indented part or a blank line; each also without sentences before it."""
    lines = segment.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    inner = next(
        (i for i in range(first + 1, len(lines)) if lines[i][:1] in (" ", "\t") and not lines[i - 1].strip()),
        first,
    )
    for start in dict.fromkeys((first, inner)):
        yield "\n".join(lines[start:])
        is_indented = lines[start][:1] in (" ", "\t")
        ends = [
            i
            for i in range(start + 1, len(lines))
            if lines[i].strip() and lines[i][0] not in " \t" and (is_indented or not lines[i - 1].strip())
        ]
        for end in ends[::-1][:_MOST_CUTS]:
            yield "\n".join(lines[start:end]) + "\n"


def _indented(body: str, indent: str) -> Iterator[str]:
    """The body with another indent, also where only its first line has lost its own; definitions behind it keep none."""
    first, _, rest = body.lstrip("\n").partition("\n")
    lines = rest.split("\n")
    end = next((i for i, line in enumerate(lines) if line.strip() and line[0] not in " \t"), len(lines))
    inner, behind = "\n".join(lines[:end]) + "\n", "\n".join(lines[end:])
    indents = {line[: len(line) - len(line.lstrip())]: None for line in lines if line.strip()}
    for lead in ("", *sorted(indents, key=len)[:8]):
        line = first if not lead else lead + first.lstrip()
        yield textwrap.indent(textwrap.dedent(f"{line}\n{inner}"), indent) + behind
        yield textwrap.indent(textwrap.dedent(f"{line}\n{rest}"), indent)
        yield textwrap.indent(textwrap.dedent(f"{line}\n{inner}".expandtabs()), indent) + behind


# The program.


def _assembled(block: _Block, others: Sequence[_Block], prompt_text: str, name: str, as_it_is: bool) -> str:
    """The block without examples of use, behind what it needs of the prompt and of other blocks.

    as_it_is: keep the examples, in what simply continues the prompt.
    """
    bound = _bound(block.body)
    given = [
        (item, node)
        for item in _prompt_blocks(prompt_text)
        for node in item.body
        if _is_definition(node, name)
    ]
    given = [(item, node) for item, node in given if not _bound([node]) <= bound | {name}]
    helpers = _needed(block, others, bound, name)
    mine = set().union(*(_bound([node]) for _, node in helpers))
    added = [(item, node) for item, node in given if not _bound([node]) <= mine] + helpers
    lines = block.source.split("\n") if as_it_is else _without_examples(block, name)
    future = [node for _, node in added if _is_future(node)]
    top = max((node.end_lineno or 0 for node in block.body if _is_future(node)), default=0)
    texts = dict.fromkeys(_text(item, node) for item, node in added if not _is_future(node))
    early = dict.fromkeys(_text(item, node) for item, node in added if node in future)
    parts = [*lines[:top], *early, *texts, *lines[top:]]
    program = "\n".join(parts) if texts or early else "\n".join(lines)
    method = _class_with(block, name) if name not in bound else None
    if method is not None:
        program += f"\n\ndef {name}(*args, **kwargs):\n    return {method}().{name}(*args, **kwargs)\n"
    return program


def _prompt_blocks(prompt_text: str) -> list[_Block]:
    """The code of a prompt, which may end within a function."""
    source = prompt_text.rstrip() + "\n"
    whole = _block(source) or _block(source + _indent_of(source) + "pass\n")
    if whole is not None:
        return [whole]
    segments = [segment for _, segment in _segments(prompt_text)]
    if len(segments) > 1:
        segments[-1] = segments[-1].rstrip() + "\n" + _indent_of(segments[-1]) + "pass\n"
    return [block for segment in segments for block in _blocks(segment)]


def _is_definition(node: ast.stmt, name: str) -> bool:
    """A statement that binds a name, and neither is nor calls the function."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        return node.name != name
    plain = isinstance(node, ast.Assign | ast.AnnAssign)
    return plain and not ({name, *_EXAMPLE} & _used([node])) and name not in _bound([node])


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _needed(
    block: _Block, others: Sequence[_Block], bound: set[str], name: str
) -> list[tuple[_Block, ast.stmt]]:
    """Definitions of other blocks that the block uses, those which they use included; of several the last."""
    places = {
        key: (item, node)
        for item in others
        for node in item.body
        if _is_definition(node, name)
        for key in _bound([node])
    }
    found: list[tuple[_Block, ast.stmt]] = []
    waiting, seen = sorted(_wanted(block.source) - bound), set(bound)
    while waiting:
        key = waiting.pop()
        if key in seen or key not in places:
            continue
        seen.add(key)
        if places[key] not in found:
            found.append(places[key])
            waiting += sorted(_wanted(_text(*places[key])))
    order = {(id(item), id(node)): i for i, (item, node) in enumerate((o, n) for o in others for n in o.body)}
    return sorted(found, key=lambda place: order[id(place[0]), id(place[1])])


def _text(block: _Block, node: ast.stmt) -> str:
    rows = block.lines(node)
    return "\n".join(block.source.split("\n")[rows.start - 1 : rows.stop - 1])


def _changes(node: ast.stmt, name: str) -> bool:
    """Whether a statement gives the function something that it may need, as `f.cache = {}` does."""
    for part in ast.walk(node):
        match part:
            case ast.Attribute(ctx=ast.Store()) | ast.Subscript(ctx=ast.Store()):
                if name in _used([part]):
                    return True
            case ast.Call(func=ast.Name(id="setattr")) | ast.Call(func=ast.Attribute(value=ast.Attribute())):
                if name in _used([part.func, *part.args[:1]]):
                    return True
    return False


def _without_examples(block: _Block, name: str) -> list[str]:
    """The block's lines without statements behind the function that only try it: prints, assertions, input."""
    lines = block.source.split("\n")
    root = _definition(block, name) if name in _bound(block.body) else None
    start = 0 if root is None else block.body.index(root) + 1
    example = {name, *_EXAMPLE}
    functions = [node for node in block.body if isinstance(node, _FUNCTIONS) and node.name != name]
    for _ in functions:
        example |= {node.name for node in functions if _used(node.body) & example}
    tail = block.body[start:] if root is not None else ()
    tried = [node for node in tail if not isinstance(node, _SCOPES) and _used([node]) & example]
    dropped = [node for node in tried if not _changes(node, name)]
    gone = {row for node in dropped for row in block.lines(node)}
    kept = {row for node in block.body if node not in dropped for row in block.lines(node)}
    return [line for row, line in enumerate(lines, start=1) if row not in gone - kept]
