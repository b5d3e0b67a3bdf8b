"""Sample a model behind any OpenAI-compatible server, judge its responses, and measure it, without training.

    python endpoint_analysis.py http://127.0.0.1:8000/v1 runs/endpoint

does what these commands do: `bontune sample --model URL --task countdown ...`, `bontune evaluate --samples ...`. Chat
models are named `http://host/v1?chat#name`; the key, where one is needed, is in OPENAI_API_KEY.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bontune.evaluate import read_samples
from bontune.evaluate.drawing import Draw, draw_samples
from bontune.evaluate.policies import evaluate
from bontune.records import Sampling
from bontune.report import write_report
from bontune.rollout import endpoint
from bontune.tasks import Countdown

PROMPTS, RESPONSES = 20, 8


def main(spec: str, output: Path) -> None:
    """Writes samples.jsonl, results.json and report.html; a second run draws only what is missing."""
    task = Countdown()
    model = endpoint.connect(spec)
    draw = Draw(
        name=model.fingerprint,
        model=model,
        tokenizer=None,
        engine=endpoint.sample_groups,
        prompts=task.prompts("test", PROMPTS),
        group_size=RESPONSES,
        sampling=Sampling(max_new_tokens=32),
        verify=task.verify,
    )
    draw_samples(draw, output / "samples.jsonl")
    results = evaluate({"served": read_samples(output / "samples.jsonl")}, output)
    write_report(output)
    reached = results["policies"]["served"]["pass_at"]
    print("  ".join(f"pass@{n} {value:.3f}" for n, value in reached.items() if n in ("1", "2", "4", "8")))
    print(f"report: {output / 'report.html'}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
