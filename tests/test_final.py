"""The final part of a response: reasoning, channels, answer tags and ends of turns, as models write them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import word_tokenizer

from bontune.config import PLAIN, Prompting
from bontune.models.loading import load_policy
from bontune.models.prompting import in_words, shown
from bontune.records import Prompt
from bontune.tasks import Countdown, JsonlTask
from bontune.tasks.final import REASONING, final_of, final_part
from bontune.tasks.programs import Programs, shown_score
from bontune.verifiers import MathVerifier
from bontune.verifiers.judges import load_answers, math_item, whole_program

PARTS = [  # (response, its final part)
    # Reasoning that is closed.
    ("<think>\nmaybe 3\n</think>\n4", "\n4"), ("<think></think>4", "4"), ("<think>\n\n</think>\n\n4", "\n\n4"),
    ("<THINK>a</Think>4", "4"), ("<thinking>a</thinking>4", "4"), ("<reasoning>3</reasoning>4", "4"),
    ("[THINK]a[/THINK]4", "4"), ("◁think▷a◁/think▷4", "4"), ("<thought>a</thought>4", "4"),
    ("<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>4<|end_of_solution|>", "4"),
    ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>4<|END_RESPONSE|>", "4"),
    ("<seed:think>a</seed:think>4", "4"), ("<think>a <think>b</think> c</think>4", "4"),
    ("<think>a</think>3<think>b</think>4", "4"), ("3<think>b</think>4", "4"), ("<think>a</think>", ""),
    ("<think>I write `</think>` when I end.</think>4", "4"),
    # A closing tag alone.
    ("so it is 3\n</think>\n4", "\n4"), ("</think>4", "4"), ("a</think>b</think>4", "4"), ("a</thinking>4", "4"),
    # Reasoning that never ends.
    ("<think>\nso \\boxed{4}", None), ("<think>a</think>4<think>b", None), ("4<think>", None), ("<Think>\n4", None),
    ("<thinking>4", None), ("[THINK]4", None),
    # No reasoning.
    ("4", "4"), ("", ""), ("I think 4", "I think 4"), ("    return x\n", "    return x\n"), ("a < b > c", "a < b > c"),
    # Channels.
    ("<|channel|>analysis<|message|>3?<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>", "4"),
    ("<|channel|>analysis<|message|>3?<|end|><|start|>assistant<|channel|>final<|message|>4", "4"),
    ("<|channel|>final<|message|>4<|end|>", "4"), ("<|channel|>analysis<|message|>\\boxed{4}", None),
    ("<|channel|>analysis<|message|>\\boxed{4}<|end|>", None),
    ("<|channel|>commentary to=functions.run <|constrain|>json<|message|>{}<|call|>", None),
    ("<|channel|>final <|constrain|>json<|message|>{\"a\": 4}<|return|>", "{\"a\": 4}"),
    ("<|channel|>final<|message|>3<|end|><|start|>assistant<|channel|>analysis<|message|>no", None),
    ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>"
     "<|start|>assistant<|channel|>final<|message|>\\boxed{4}<|return|>", "\\boxed{4}"),
    ("analysisWe compute 3.assistantfinalThe answer is 4.", "The answer is 4."), ("analysisWe compute 3.", None),
    ("analysis of this gives 4", "analysis of this gives 4"), ("Analysis: 4", "Analysis: 4"),
    # Answer tags.
    ("<answer>4</answer>", "4"), ("w\n<answer>\n4\n</answer>\n", "4"), ("<ANSWER>4</ANSWER>", "4"), ("<answer>4", "4"),
    ("4</answer>", "4"), ("<think>a</think>\n<answer>4</answer>", "4"), ("<answer>4</answer> I hope so.", "4"),
    ("<think><answer>3</answer></think><answer>4</answer>", "4"), ("<answer>4</answer><answer>4</answer>", "4"),
    ("<answer>3</answer> or <answer>4</answer>", "3\n\n4"), ("<answer></answer>\n<answer>4</answer>", "4"),
    ("<final_answer>4</final_answer>", "4"), ("Between `<answer>` and `</answer>`: <answer>4</answer>", "4"),
    ("<think><answer>3</answer></think>4", "4"), ("<answer>\n    return x\n</answer>", "    return x"),
    ("<answer>4</answer></answer>", "4"),
    # Tags that a program speaks of.
    ('def f(s):\n    return s.split("</think>")[1]\n', 'def f(s):\n    return s.split("</think>")[1]\n'),
    ('re.findall("<answer>(.*)</answer>", s)', 're.findall("<answer>(.*)</answer>", s)'),
    ("return '<think>' in s", "return '<think>' in s"), ('<think>a</think>"B"', '"B"'),
    # Tokens that end a turn.
    ("4<|im_end|>", "4"), ("4</s>", "4"), ("4<|eot_id|>\n", "4"), ("4<end_of_turn>", "4"), ("4 <|endoftext|></s>", "4"),
    ("4<｜end▁of▁sentence｜>", "4"), ("<answer>4</answer><|im_end|>", "4"), ("a<|im_end|>b", "a<|im_end|>b"),
]  # fmt: skip


@pytest.mark.parametrize(("response", "part"), PARTS)
def test_the_final_part(response: str, part: str | None) -> None:
    assert final_part(response) == part


def test_marks_of_ones_own() -> None:
    marks = [("((", "))"), ("<r>", "</r>")]
    assert final_part("((3))4", marks) == "4"
    assert final_part("<R>3</R>4", marks) == "4"
    assert final_part("((4", marks) is None
    assert final_part("<think>4", marks) == "<think>4"
    assert final_part("<think>4", ()) == "<think>4"
    assert final_part("<r>a</r>4", (*REASONING, *marks)) == "4"
    for bad in ([("", "</a>")], [("a",)], ["ab", "c"]):
        with pytest.raises(ValueError, match="marks must be pairs"):
            final_part("4", bad)  # pyright: ignore


def test_reasoning_that_the_prompt_opened() -> None:
    assert final_part("so 4", prompt="Question\n<think>\n") is None
    assert final_part("so 3</think>4", prompt="Question\n<think>\n") == "4"
    assert final_part("4", prompt="Question\n<think>\n\n</think>\n\n") == "4"
    assert final_part("4", prompt="Use <think> first.") == "4"


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "4", '"', "\n", " "]), max_size=12
    )
)
def test_what_stands_in_reasoning_is_never_final(pieces: list[str]) -> None:
    part = final_part("<think>DRAFT" + "".join(pieces))
    assert part is None or "DRAFT" not in part


@pytest.mark.parametrize(
    "piece", ["<think>", "<|channel|>a", "<", " ", "<answer>", "</think>", '"</think>"', "analysisA"]
)
def test_long_texts_end_soon(piece: str) -> None:
    final_part(piece * 30_000)


# Markers of one's own.

MARKED = Prompt(id="p", text="1 2 = 3 :", answer="3", meta={"reasoning_markers": (("<a>", "</a>"),)})


def test_own_markers_are_beside_the_usual_ones() -> None:
    assert final_of(MARKED, "<a>4</a>3") == "3"
    assert final_of(MARKED, "<think>4</think>3") == "3"
    assert final_of(MARKED, "<a>3") is None
    assert final_of(replace(MARKED, meta={}), "<a>4</a>3") == "<a>4</a>3"
    assert final_of(replace(MARKED, text="Think. <a>"), "4</a>3") == "3"


@pytest.mark.parametrize("wrong", ["<a>", "<a>,", ",", "<a>,</a>,<b>", ""])
def test_markers_are_pairs(wrong: str) -> None:
    with pytest.raises(ValueError, match="reasoning_markers must be like"):
        Prompting(reasoning_markers=(wrong,))


def test_markers_are_read_from_settings_and_change_nothing_that_is_read() -> None:
    prompting = Prompting(chat="off", reasoning_markers=("<a>, </a>", "[R],[/R]"))
    assert prompting.markers() == (("<a>", "</a>"), ("[R]", "[/R]"))
    assert prompting.plain
    assert repr(prompting) == repr(PLAIN)  # by which older runs are known
    assert Prompting(**json.loads(json.dumps(asdict(prompting)))) == prompting
    (prompt,) = shown([replace(MARKED, meta={"x": 1})], word_tokenizer(), prompting)
    assert prompt.tokens is None
    assert prompt.meta == {"x": 1, "reasoning_markers": prompting.markers()}
    assert "reasoning between <a> and </a>" in in_words(prompting)


def test_everything_that_reads_responses_reads_by_them(tmp_path: Path) -> None:
    """Tasks, mathematics, programs, votes and judges; `test_learned` has learned verifiers."""
    said = "<a>1 1 +, so 9</a>1 2 +"
    assert Countdown().verify(MARKED, said).reward == 1
    assert Countdown().verify(MARKED, "<a>1 2 +").reason == "the reasoning never ends"
    assert load_answers("countdown")(MARKED, said) == "3"  # pyright: ignore
    (tmp_path / "t.jsonl").write_text('{"prompt": "1 + 2", "answer": "3"}\n')
    assert JsonlTask(tmp_path / "t.jsonl").verify(MARKED, "<a>4</a>3").reward == 1
    assert load_answers("number")(MARKED, "3<a>4</a> or so") is None  # pyright: ignore
    assert load_answers("math")(MARKED, "<a>\\boxed{4}</a>\\boxed{3}") == "3"  # pyright: ignore
    assert math_item(MARKED, "x")["marks"][-1] == ("<a>", "</a>")
    function = replace(MARKED, text="def f():\n", meta=MARKED.meta | {"entry_point": "f"})
    assert (
        whole_program(function, "<a>\ndef f(): return 1\n</a>\ndef f(): return 2\n").strip()
        == "def f(): return 2"
    )
    program = Programs().prompts("test", 1)[0]
    (reference,) = Programs().references(program)
    thought = f"<a>x</a>{reference}"
    assert Programs().verify(program, thought).reward == 0
    program = replace(program, meta=program.meta | {"reasoning_markers": [["<a>", "</a>"]]})
    assert Programs().verify(program, thought).reward == 1
    assert shown_score(program, [thought, "<a>" + reference]) == [1.0, 0.0]


def test_mathematics_takes_marks_with_an_item() -> None:
    pytest.importorskip("math_verify")
    with MathVerifier(workers=1) as verifier:
        items = [
            math_item(prompt, "<a>\\boxed{4}</a>\\boxed{3}") for prompt in (MARKED, replace(MARKED, meta={}))
        ]
        assert [verdict.reward for verdict in verifier.verify(items)] == [1.0, 0.0]


def test_models_of_the_package_write_no_marks() -> None:
    """So what they were measured by stays: the final part of what they write is what they write."""
    for name, task in (("countdown-base", Countdown()), ("programs-base", Programs())):
        prompt = task.prompts("test", 1)[0].text
        model, tokenizer = load_policy(name)
        tokens = [tokenizer.decode([i]) for i in range(model.config.vocab_size)]
        alphabet = st.sampled_from([token for token in tokens if token not in tokenizer.all_special_tokens])
        assert not any(mark in "".join(tokens) for pair in REASONING for mark in pair)

        @settings(max_examples=300, deadline=None)
        @given(text=st.lists(alphabet, max_size=40).map("".join))
        def unchanged(prompt: str, text: str) -> None:
            assert final_part(text, prompt=prompt) == text

        unchanged(prompt)
