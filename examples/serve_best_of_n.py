"""Ask `bontune serve` with the official client: the chosen response, its score, all that was drawn, and a stream.

bontune serve --backend countdown-base --strategy "BestOfN(budget=32)" --scorer countdown_checks:reaches &
python serve_best_of_n.py http://127.0.0.1:8000/v1 "3 5 7 = 15 :" "2 9 10 11 = 48 :"
"""

from __future__ import annotations

import sys
from collections import Counter

from openai import OpenAI


def main(url: str, prompts: list[str]) -> None:
    """One line per prompt, then how the first one's responses were, then the same as a stream."""
    client = OpenAI(base_url=url, api_key="none")
    name = client.models.list().data[0].id
    for prompt in prompts:
        for budget in (1, 32):
            found = client.completions.create(model=name, prompt=prompt, best_of=budget, seed=0)
            choice = found.choices[0]
            print(
                f"{prompt}  best-of-{budget}: {choice.text!r}, score {choice.model_extra['bontune']['score']}"
            )
    found = client.completions.create(
        model=name, prompt=prompts[0], seed=0, extra_body={"alternatives": True}
    )
    drawn = found.choices[0].model_extra["bontune"]["alternatives"]
    counts = Counter((item["text"], item["score"]) for item in drawn)
    print(f"{len(drawn)} responses, {len(counts)} different ones; the most frequent:")
    for (text, score), count in counts.most_common(4):
        print(f"  {count:2} x {text!r}, score {score}")
    chunks = client.completions.create(model=name, prompt=prompts[0], seed=0, stream=True)
    print("streamed:", "".join(choice.text for chunk in chunks for choice in chunk.choices))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
