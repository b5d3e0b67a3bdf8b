"""The tuned model, written as a plain transformers folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from bontune.models.adapters import ADAPTER_CONFIG
from bontune.models.loading import save_policy
from bontune.train.checkpoint import prune
from bontune.train.run import Metrics, Run
from bontune.train.shard import join_parts, own_folder
from bontune.train.update import Learner


def save(run: Run, learner: Learner, history: Sequence[Metrics]) -> None:
    """The tuned model as a plain transformers folder, below `output/model`; there as a whole or not at all.

    Then only the last checkpoint stays.
    """
    if run.output is None:
        return
    checkpoints, writes = own_folder(run.output / "checkpoints", run.model, learner.accelerator)
    join_parts(
        run.model, keep=learner.accelerator.is_main_process
    )  # each process has written its last checkpoint
    if learner.accelerator.is_main_process:
        writing, place = run.output / ".model-writing", run.output / "model"
        shutil.rmtree(writing, ignore_errors=True)
        save_policy(run.model, run.tokenizer, writing)
        for folder in (writing, writing / "adapter"):
            if run.card is not None and folder.is_dir():
                text = run.card(history, (folder / ADAPTER_CONFIG).is_file())
                (folder / "README.md").write_text(text, encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        writing.rename(place)
    if writes:
        prune(checkpoints, keep=1)
