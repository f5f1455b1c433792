"""Gets the scores of a run's chains from `scaling.scoring`, which runs as a process of its own.

A scorer may be a large model, and this package does not import the packages that models need.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.load import Run
from scaling.records.errors import UsageError
from scaling.records.files import MODULE


def scores(run: Run, scorer: str) -> NDArray[np.float64]:
    """The score of each chain, [Q, N, M]; higher is better.

    Args:
        run: a run with a directory on disk.
        scorer: `module:function`, or a folder or Hub id of a reward model.

    Raises:
        UsageError: the scorer failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.jsonl"
        command = [*MODULE, "scaling.scoring", str(run.folder), "--scorer", scorer, "--out", str(out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)  # progress and tracebacks go to the screen
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode:
            # the last line, as the scorer itself may have printed others before
            message = done.stdout.splitlines()[-1:] if done.returncode == 2 else []
            raise UsageError("".join(message) or f"`--scorer` {scorer} failed; its own message stands above")
        return _read(out, run)


def _read(path: Path, run: Run) -> NDArray[np.float64]:
    """The scores in a file, [Q, N, M]. Those of chains outside the run's grid are left out."""
    table = pd.read_json(path, lines=True, dtype={"question_id": str, "score": float})
    row = pd.Index([asked.id for asked in run.questions]).get_indexer(pd.Index(table["question_id"]))
    kept = (row >= 0) & (table["path"] < run.num_paths) & (table["sample"] < run.num_samples)
    grid = np.full(run.tokens.shape, np.nan)
    grid[row[kept], table["path"][kept], table["sample"][kept]] = table["score"][kept]
    return grid
