"""The problems of the demo on a real model: an excerpt of GSM8K, answered directly, without working."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from bontune.config import Prompting, Sampling
from bontune.records import Prompt, Verdict
from bontune.tasks import JsonlTask
from bontune.tasks.jsonl import parse_number

PROMPTING = Prompting(prompt_template="{prompt}\nAnswer with the number only.", reply_start="The answer is ")
SAMPLING = Sampling(max_new_tokens=5, stop=(".", "\n"))
_FIRST = re.compile(r"\s*(-?[$€£]?\d(?:[\d,]*\d)?)(?!\d|\s*/)")  # "1/2" is not 1


@cache
def problems() -> JsonlTask:
    """960 training and 400 test problems of GSM8K, drawn at random; judged by `first_number`."""
    path = str(files("bontune") / "demo" / "assets" / "gsm8k" / "gsm8k-excerpt.jsonl.gz")
    return JsonlTask(path, verifier=first_number)


def first_number(prompt: Prompt, response: str) -> Verdict:
    """1 where the response begins with a whole number that has the value of the answer."""
    begun = _FIRST.match(response)
    value = None if begun is None else parse_number(begun[1])
    if value is None:
        return Verdict(reward=0.0, reason="does not begin with a number")
    return Verdict(reward=float(value == parse_number(prompt.answer or "")), answer=str(value))
