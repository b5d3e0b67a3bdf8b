"""A normal form of what stands as an answer: one spelling of signs, roots, fractions, number words and scales."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

from bontune.verifiers.math.numbers import NUMERAL, number
from bontune.verifiers.math.units import SYMBOLS, measure

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‒": "-", "‐": "-", "×": r"\times ", "✕": r"\times ", "·": r"\cdot ",
        "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ",
        "𝜋": r"\pi ", "∞": r"\infty ",
        "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ", "∈": r"\in ", "∉": r"\notin ", "∪": r"\cup ",
        "∩": r"\cap ",
        "∅": r"\emptyset ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\neq ",
        "≈": r"\approx ", "±": r"\pm ",
        "∓": r"\mp ", "∧": r"\land ", "∨": r"\lor ", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ",
        "→": r"\to ",
        "∠": r"\angle ", "△": r"\triangle ", "∥": r"\parallel ", "⊥": r"\perp ", "⟂": r"\perp ",
        "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "′": "'", "’": "'",
        "“": '"', "”": '"',
        "⟨": r"\langle ", "⟩": r"\rangle ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ",
        "ε": r"\epsilon ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ",
        "τ": r"\tau ", "φ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ", "Ω": r"\Omega ", "Σ": r"\Sigma ",
        "℃": r"^\circ C",
        "℉": r"^\circ F", "…": r"\ldots ",
        "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "，": ",", "、": ",",
        "；": ";", "：": ":",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\u2062": "", "\u2061": "",
    }
)  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₚₛₜₓ", "0123456789aehijklmnpstx", strict=True))
_CURRENCY = (
    r"(?<![a-zA-Z\\])(?:US|CA|AU|A|C|HK|NT)?\\?[$€£¥₹₩₽₺₫¢]|"
    r"\\(?:\$|(?:pounds|euro|EUR|yen|textdollar|textsterling|texteuro)(?![a-zA-Z]))"
)
_ROOT = re.compile(r"\\sqrt(?![a-zA-Z])(\s*\[[^\[\]]*\])?\s*")

_FONTS = "large|Large|LARGE|huge|Huge|small|normalsize|bf|rm|it|sf|bfseries|mathstrut|checkmark|therefore"
_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: i for i, word in enumerate(_SMALL)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "score": 20, "lakh": 10**5, "crore": 10**7, "quadrillion": 10**15, "quintillion": 10**18,
}  # fmt: skip
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "sixteenth": 16, "twentieth": 20, "hundredth": 100,
    "thousandth": 1000, "millionth": 10**6,
}  # fmt: skip
_BASES = {"binary": 2, "ternary": 3, "quaternary": 4, "octal": 8, "decimal": 10, "hexadecimal": 16, "hex": 16}
_WORD = "|".join([*_TENS, *reversed(_SMALL)])
_WORDS = re.compile(rf"(?<![\w\\{{])(?:{_WORD})(?:[- ](?:{_WORD}))*(?![\w}}])", re.IGNORECASE)
_SCALED = re.compile(
    rf"(.*?[\d}}])[ -]+({'|'.join(_SCALES)})s?(?![a-zA-Z])(?:\s+of(?=\s))?(.*)", re.IGNORECASE
)
_PARTED = re.compile(
    rf"([+-]?\d+)[ -]+({'|'.join(_PARTS)})s?(?![a-zA-Z])(?:\s+of\s+an?(?=\s))?(.*)", re.IGNORECASE
)
_OPERATORS = [
    (re.compile(pattern, re.IGNORECASE), sign)
    for pattern, sign in (
        (r"(?<=[\w}).])\s+minus\s+(?=[\w\\({])", " - "), (r"(?<=[\w}).])\s+plus\s+(?=[\w\\({])", " + "),
        (r"(?<=[\w}).])\s+(?:times|multiplied by)\s+(?=[\w\\({])", r" \\times "),
        (r"(?<=[\w}).])\s+(?:divided by|over)\s+(?=[\w\\({])", " / "),
        (r"^(?:minus|negative)\s+(?=[\d\\(.])", "-"), (r"(?<=[\w}).])\s+squared(?![a-z])", "^2"),
        (r"(?<=[\w}).])\s+cubed(?![a-z])", "^3"), (r"(?<=[\d)])\s+factorial(?![a-z])", "!"),
        (r"(?<=[\w}).])\s+to the power(?: of)?\s+(-?\d+)", r"^{\1}"),
        (r"(?<!\d)(\d+)\s+choose\s+(\d+)", r"\\binom{\1}{\2}"), (r"(?<=\d)\s+point\s+(?=\d+$)", "."),
        (r"(?:the )?square root of\s+(\d+)", r"\\sqrt{\1}"), (r"(?:the )?cube root of\s+(\d+)", r"\\sqrt[3]{\1}"),
    )
]  # fmt: skip
_OPERATOR_WORDS = re.compile(
    r"minus|plus|times|multiplied|divided|over|negative|squared|cubed|factorial|power|root|choose|point", re.I
)
_HEDGES = re.compile(
    r"^(?:\\(?:approx|sim|simeq)(?![a-zA-Z])|~|approximately|approx\.?|about|roughly|around|exactly|only|just)\s*"
    r"(?=[\d\\$(.+-])",
    re.IGNORECASE,
)
_LEADS = re.compile(
    r"^(?:(?:therefore|thus|hence|so|\\therefore)[,\s]+)?"
    r"(?:(?:the\s+)?(?:(?:final|correct|exact)\s+)?(?:answer|result|solution)\s*(?:is|are|=|:)[\s:]*(?=\S)"
    r"|(?!yes|no\b)[A-Za-z][A-Za-z ]{2,30}:\s*(?=[-\d$\\(.]))?(?:(?:either|both)\s+(?=\S))?",
    re.IGNORECASE,
)


@lru_cache(maxsize=20_000)
def normal(answer: str) -> str:
    """A normal form of the text: the same mathematics may still be written in other ways."""
    text = answer.strip()
    if re.fullmatch(NUMERAL, text) and not text.endswith("."):
        return text
    text = re.sub(
        r"\\(?:noindent|newline|medskip|bigskip|smallskip|par)(?![a-zA-Z])", " ", text
    )  # typesetting
    text = _undecorated(re.sub(r"(?:\\\\\s*)+$", "", text.strip()).strip())
    if not text.isascii():
        text = _ascii(text)
    text = re.sub(r"^\{([^{},]*)\}$", r"\1", _unwrapped(text))
    text = _rooted(_fractions(text))
    text = re.sub(
        r"\^\s*\{?\s*\\(?:circ|degree)(?![a-zA-Z])\s*\}?|\\(?:degree|textdegree)(?![a-zA-Z])",
        r"^\\circ ",
        text,
    )
    text = text.replace(r"\%", "%").replace(r"\{", r"\lbrace ").replace(r"\}", r"\rbrace ")
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3}(?!\d))", "", text).replace("{,}", ",")
    text = text.replace(r"\langle", "(").replace(r"\rangle", ")")
    text = text.replace(r"\varnothing", r"\emptyset").replace(r"\leq", r"\le").replace(r"\geq", r"\ge")
    text = re.sub(_CURRENCY, " ", text).replace("$", " ").strip()
    text = re.sub(r"^(?:USD|EUR|GBP|INR|JPY|CNY|Rs)\.?\s*(?=[\d.])", "", text)
    text = re.sub(r"^([+-])\s+(?=[\d.])", r"\1", text)
    text = re.sub(r"(?<=\d)\s*(?:per\s?cent|pct)\b\.?", "%", text)
    text = _HEDGES.sub("", _LEADS.sub("", text, count=1)).strip()
    text = re.sub(
        r"(?<=\d)\s*\\Omega$",
        " ohm",
        re.sub(r"(\d):00\s*([ap])\.?m\.?$", r"\1 \2m", text, flags=re.IGNORECASE),
    )
    if re.search(r"[a-zA-Z]{3}", text):
        text = _words(text)
    text = re.sub(r"^[a-zA-Z](?:_\{?\w+\}?)?\s*\\in(?![a-zA-Z])\s*", "", _parts(text))
    text = _ungrouped(re.sub(r"\s+", " ", text).strip())
    return re.sub(r"^\\approx\s*", "", re.sub(r"(?<!\.)\s*[.,;]$", "", text))


def _undecorated(text: str) -> str:
    """Without Markdown, display signs and an environment of aligned lines around it."""
    text = text.strip("*`").strip() if text[:1] in "*`" or text[-1:] in "*`" else text
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
    found = re.fullmatch(
        r"\\begin\{(align(?:ed|\*)?|gather(?:ed|\*)?|split|array|cases)\}(?:\{[lcr|]+\})?(.*)\\end\{\1\}",
        text,
        re.S,
    )
    if found is None:
        return text
    lines = [line.replace("&", " ").strip() for line in re.split(r"\\\\(?:\[[^\]]*\])?", found[2])]
    joined = ""
    for line in filter(None, lines):
        joined += line if not joined else f" {line}" if re.match(r"=|[,.]", line) else f", {line}"
    return re.sub(r",\s*,", ",", joined)


def _frac(top: str, bottom: str) -> str:
    return rf"\frac{{{top}}}{{{bottom}}}"


def _ascii(text: str) -> str:
    """Signs of unicode as LaTeX."""
    text = re.sub("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)√", lambda m: "\\sqrt[" + "".join(_RAISED[c] for c in m[1]) + "] ", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+", lambda m: "^{" + "".join(_RAISED[c] for c in m[0]) + "}", text)
    text = re.sub(
        "[₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₚₛₜₓ]+", lambda m: "_{" + "".join(_LOWERED[c] for c in m[0]) + "}", text
    )
    text = re.sub(r"\^\s*([¼½¾⅐-⅞])", r"^{\1}", text)
    text = re.sub(
        "[¼½¾⅐-⅞]", lambda m: _frac(*unicodedata.normalize("NFKC", m[0]).split("⁄")), text
    ).translate(_SIGNS)
    return "".join(unicodedata.normalize("NFKC", c) if "\uff01" <= c <= "\uff5e" else c for c in text)


def _unwrapped(text: str) -> str:
    """Without what LaTeX needs for size, space and type."""
    text = re.sub(
        r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|textstyle|limits)(?![a-zA-Z])\.?", "", text
    )
    text = re.sub(
        r"(?<!\\)\\[!,;:> ]|~(?=\S)(?!^)|\\q?quad(?![a-zA-Z])|\\[hv]space\*?\s*\{[^{}]*\}", " ", text
    )
    if "\\" in text:
        text = re.sub(
            rf"\\(?:{_FONTS})(?![a-zA-Z])\s?|\\color\s*\{{\w+\}}|\\textcolor\s*\{{\w+\}}(?=\s*\{{)", "", text
        )
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    if "{" not in text:
        return text
    text = re.sub(
        r"(?<=[\d}])\s*\\(?:text|textrm|mathrm|mbox|operatorname|rm)\s*\{\s*([a-zA-Z])\s*\}",
        lambda m: f" {SYMBOLS[m[1]]} " if m[1] in SYMBOLS else m[0],
        text,
    )
    text = re.sub(
        r"\\(?:mathrm|mathit|mathbf|mathsf|operatorname|boldsymbol)\s*\{([^{}]*)\}",
        lambda m: f" {m[1].strip()} " if re.search(r"[a-zA-Z]{2}|[/^]", m[1]) else m[1],
        text,
    )
    for _ in range(2):  # \textbf{\text{...}}
        text = re.sub(
            r"\\(?:text|textrm|textbf|textit|textsf|texttt|mbox|hbox|emph|underline|underbrace)\s*\{([^{}]*)\}",
            lambda m: f" {m[1].strip()} ",
            text,
        )
    return text


def _fractions(text: str) -> str:
    r"""\frac12, \frac1{2} and \frac{1}2 with both braces."""
    if r"\frac" not in text:
        return text
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*([a-zA-Z\d])\s*(?=[{\\])", r"\\frac{\1}", text)
    return re.sub(
        r"(\\frac\s*\{[^{}]*\})\s*([a-zA-Z\d])(?![a-zA-Z]{2})",
        r"\1{\2}",
        re.sub(r"\\frac\s+\{", r"\\frac{", text),
    )


def _rooted(text: str) -> str:
    r"""\sqrt2, \sqrt 10, \sqrt(2), \sqrt[3]2, \sqrt\pi with braces; of "\sqrt10", people mean the root of ten."""
    if "sqrt" not in text and r"\root" not in text:
        return text
    text = re.sub(r"\\root\s*(\d+)\s*\\of(?![a-zA-Z])", r"\\sqrt[\1]", text)
    text = re.sub(r"(?<![a-zA-Z\\])sqrt\s*(?=[({\d])", r"\\sqrt", text)
    for match in reversed(list(_ROOT.finditer(text))):  # the innermost first
        start, end = match.end(), _operand_end(text, match.end())
        if end is None or text[start : start + 1] == "{":
            continue
        inside = text[start + 1 : end - 1] if text[start] == "(" else text[start:end]
        text = f"{text[: match.start()]}\\sqrt{(match[1] or '').strip()}{{{inside}}}{text[end:]}"
    return re.sub(r"\\sqrt\s*(\[[^\[\]]*\])?\s*\{", r"\\sqrt\1{", text)


def _operand_end(text: str, at: int) -> int | None:
    """Behind the number, letter, bracket or command with its braces that begins at `at`."""
    if text[at : at + 1] in ("(", "{"):
        return _closing(text, at)
    found = re.compile(r"\d+(?:\.\d+)?|[a-zA-Z](?![a-zA-Z])|\\[a-zA-Z]+").match(text, at)
    if found is None:
        return None
    end: int | None = found.end()
    while end is not None and found[0].startswith("\\") and text[end : end + 1] == "{":
        end = _closing(text, end)
    return end


def _closing(text: str, at: int) -> int | None:
    """Behind the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i + 1
    return None


def _words(text: str) -> str:
    """Number words, scales, fractions, bases and operators in words as numbers and signs."""
    if yes := re.match(r"(yes|no)(?=\s*[,;:.!(]|\s+-)", text, re.IGNORECASE):
        return yes[1]
    text = re.sub(
        rf"_\{{?\s*({'|'.join(_SMALL[2:17])})\s*\}}?(?![a-z])", lambda m: f"_{{{_SMALL.index(m[1])}}}", text
    )
    text = re.sub(
        r"([0-9A-Fa-f]+)\s+\(?(?:in\s+)?(binary|ternary|quaternary|octal|decimal|hexadecimal|hex)\)?$",
        lambda m: m[1] if m[2] == "decimal" else f"{m[1]}_{{{_BASES[m[2]]}}}",
        text,
    )
    text = _WORDS.sub(
        _digits, re.sub(r"^(?:minus|negative)\s+(?=[a-z\d\\(.])", "-", text, flags=re.IGNORECASE)
    )
    text = _compounds(text)
    text = re.sub(r"([0-9A-Fa-f]+)\s+\(?(?:in\s+)?base[ -]?_?\{?(\d+)\}?\)?$", r"\1_{\2}", text)
    text = re.sub(r"_\{10\}$", "", text)
    for _ in range(3):
        scaled = _SCALED.fullmatch(text)
        value = None if scaled is None else number(scaled[1].replace(",", "").strip())
        if scaled is None or not isinstance(value, Fraction):
            break
        text = f"{_plain(value * _SCALES[scaled[2].lower()])}{scaled[3]}"
    text = re.sub(r"(?<=\d)\s+and\s+an?\s+(?=half|third|quarter|fourth)", " and 1 ", text)
    text = re.sub(r"^(?:an?\s+)?half(?![a-z])", "1 half", text, flags=re.IGNORECASE)
    mixed, _, rest = text.rpartition(" and ")
    if parted := _PARTED.fullmatch(rest if re.fullmatch(r"-?\d+", mixed) else text):
        share = Fraction(int(parted[1]), _PARTS[parted[2].lower()])
        whole = int(mixed) if re.fullmatch(r"-?\d+", mixed) else 0
        text = f"{whole - share if mixed.startswith('-') else whole + share}{parted[3]}"
    if below := re.fullmatch(
        rf"({NUMERAL})\s*((?:\^\\circ\s*[CF]?|degrees?|[a-zA-Z]+)?(?:\s+[a-zA-Z]+)?)\s+below (?:zero|0)", text
    ):
        text = f"-{below[1]} {below[2]}".strip()
    if _OPERATOR_WORDS.search(text):
        for pattern, sign in _OPERATORS:
            text = pattern.sub(sign, text)
    return _without_gloss(text)


def _compounds(text: str) -> str:
    """ "half a million", "a dozen", "2 hundred and 50" and "2 thousand 500" by numbers alone."""
    text = re.sub(
        rf"^(?:one\s+)?half\s+an?\s+(?=(?:{'|'.join(_SCALES)})\b)", "1/2 ", text, flags=re.IGNORECASE
    )
    text = re.sub(rf"^an?\s+(?=(?:{'|'.join(_SCALES)})\b)", "1 ", text, flags=re.IGNORECASE)
    text = re.sub(rf"^an?\s+(?=(?:{'|'.join(_PARTS)})\b)", "1 ", text, flags=re.IGNORECASE)
    for scale in ("hundred", "thousand", "million", "billion"):
        text = re.sub(
            rf"(?<![\d.,/}}])(\d{{1,9}})\s+{scale}(?![a-z])(?:\s+(?:and\s+)?(\d{{1,9}})(?![\d./,]))?",
            lambda m, size=_SCALES[scale]: (
                str(int(m[1]) * size + int(m[2] or 0)) if int(m[2] or 0) < size else m[0]
            ),
            text,
        )
    return text


def _without_gloss(text: str) -> str:
    """ "5 (five)" and "5 (in cm)" as 5; what contradicts, or changes the value, stays."""
    found = re.fullmatch(r"(.*[\d}%)])\s+[(\[]([^()\[\]]*)[)\]]((?:\s+[A-Za-z]+)*)", text)
    value = None if found is None else number(found[1])
    if found is None or value is None:
        return text
    gloss = found[2].strip()
    rounded = re.match(r"rounded|to (?:the nearest|\d+|one|two|three)", gloss)
    same = (
        number(gloss) == value
        or rounded
        or (bool(re.match(r"[A-Za-z]{2}", gloss)) and measure(f"5 {gloss}")[0] == "5")
    )
    return found[1] + found[3] if same else text


def _digits(match: re.Match[str]) -> str:
    """ "twenty-five" as 25; words that do not make one number stay words."""
    words = re.split(r"[- ]", match[0].lower())
    values = [_VALUES[word] for word in words]
    if len(values) == 1:
        return str(values[0])
    if len(values) == 2 and values[0] >= 20 and values[0] % 10 == 0 and 0 < values[1] < 10:
        return str(sum(values))
    return match[0]


def _plain(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def _parts(text: str) -> str:
    """ "a. 3, b. 4" as (3, 4)."""
    if not re.match(r"\(?a[.)]\s", text):
        return text
    labels = re.findall(r"(?:^|\s)\(?([a-h])[.)](?=\s)", text)
    values = [part.strip(" ,;") for part in re.split(r"(?:^|\s)\(?[a-h][.)](?=\s)", text)[1:]]
    return (
        f"({', '.join(values)})" if len(values) > 1 and "".join(labels) == "abcdefgh"[: len(labels)] else text
    )


def _ungrouped(text: str) -> str:
    """Without the separators of thousands, where the text is one number and not a list of numbers."""
    if re.fullmatch(r"[^\d]{0,8}\d{1,3}(,\d{3})+(\.\d+)?(?![\d,])[^,]{0,60}", text) or (
        re.search(r"\s(?:and|or)\s", text) and not re.search(r",(?!\d{3}(?!\d))", text)
    ):
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    elif re.fullmatch(r"[+-]?\d{1,2}(?:,\d{2})+,\d{3}", text) and re.search(r",0\d,", text):
        text = text.replace(",", "")  # 1,00,000
    if re.fullmatch(r"[+-]?\d{1,3}(?: \d{3})+", text):
        text = text.replace(" ", "")
    return text
