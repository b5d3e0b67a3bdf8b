"""Which folder of the package may import which: the one table, and the picture in CONTRIBUTING.md that is made from it.

    python scripts/rooms.py    # writes the picture again

`tests/test_imports.py` holds the sources to the table and the picture to both.
"""

from __future__ import annotations

from pathlib import Path

ROOMS: dict[str, tuple[str, ...]] = {
    # settings, and the records that cross the arrows
    "config": (),
    "records": ("config",),
    # the mathematics
    "strategies": ("config", "records"),
    "objectives": ("config", "records", "strategies"),
    # task -> rollout -> score
    "tasks": ("config", "records"),
    "models": ("config", "records"),
    "rollout": ("config", "records", "models"),
    "verifiers": ("config", "records", "models", "tasks", "rollout"),
    "store": ("config", "records", "models", "verifiers"),
    # -> update -> evaluate -> report
    "evaluate": ("config", "records", "strategies", "tasks", "models", "rollout", "verifiers", "store"),
    "train": (
        "config", "records", "strategies", "objectives", "tasks", "models", "rollout", "verifiers", "store", "evaluate",
    ),
    "report": (),
    # what people touch
    "serve": ("config", "records", "strategies", "objectives", "models", "rollout", "verifiers", "evaluate"),
    "integrations": ("config", "records", "strategies", "objectives"),
    "demo": (
        "config", "records", "strategies", "objectives", "tasks", "models", "verifiers", "store", "evaluate", "train",
        "report", "serve",
    ),
    "cli": (
        "config", "records", "strategies", "objectives", "tasks", "models", "rollout", "verifiers", "store", "evaluate",
        "train", "report", "serve", "demo",
    ),
}  # fmt: skip
"""Each room and what it may import, in an order in which a room only imports rooms above it."""

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
BEGIN, END = "<!-- rooms: made by scripts/rooms.py -->", "<!-- /rooms -->"


def direct(room: str) -> tuple[str, ...]:
    """What a room may import, less what another room of these may import as well: the arrows worth drawing."""
    allowed = ROOMS[room]
    beyond = {name for other in allowed for name in reach(other)}
    return tuple(name for name in allowed if name not in beyond)


def reach(room: str) -> set[str]:
    """All that a room may come to use, over others."""
    return set(ROOMS[room]).union(*(reach(name) for name in ROOMS[room])) if ROOMS[room] else set()


def picture() -> str:
    """The table as a Mermaid graph, which code hosts draw."""
    lines = [f"    {room} --> {name}" for room in ROOMS for name in direct(room)]
    alone = [f"    {room}" for room in ROOMS if not ROOMS[room] and all(room not in direct(r) for r in ROOMS)]
    return "\n".join(["```mermaid", "graph TD", *lines, *alone, "```"])


def page_with_picture(text: str) -> str:
    """The page with the picture between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{picture()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_picture(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
