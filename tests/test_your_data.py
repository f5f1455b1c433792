"""docs/your-data.md: every command of the page does what it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pandas
import pytest
from typer.testing import CliRunner

from scaling import cli
from scaling.training import cli as training_cli

PAGE = (Path(__file__).parents[1] / "docs" / "your-data.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("scale-")]
APPS = {"scale-run": cli.app, "scale-train": training_cli.app}
SMALL = {
    "scale-run": ["--max-new-tokens", "4"],
    "scale-train": ["--validation", "2", "--max-steps", "1", "--latent-paths", "2", "--batch-size", "2"],
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the page speaks of, in the current folder."""
    monkeypatch.chdir(tmp_path)
    lost = {"Body": "Ann had 9 pens. She lost 2 of them.", "Question": "How many pens has she left?"}
    svamp = [
        {"ID": "chal-1", **lost, "Answer": 7.0},
        {"ID": "chal-2", **lost, "Body": "Ann had 7 pens.", "Answer": 7.0},
    ]
    Path("svamp.json").write_text(json.dumps(svamp))
    exam = {"No": 1, "Text": "Ants are small.", "Task": "Which is big?", "A": "ant", "B": "whale", "C": "bee"}
    pandas.DataFrame([exam | {"Right one": "whale"}]).to_csv("exam.csv", index=False)
    Path("boolq.jsonl").write_text('{"question": "is ice cold", "answer": true, "passage": "Ice is frozen water."}')
    Path("quiz.jsonl").write_text('{"question": "Which is big?", "options": ["ant", "whale"], "answer": 1}')
    pandas.DataFrame([{"question": "Who wrote it?", "answer": "Ann"}]).to_csv("names.tsv", index=False, sep="\t")
    Path("gsm8k/main").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [
            {"question": f"What is {n} + {split == 'train'}?", "answer": f"It is {n}<<{n}+0={n}>>.\n#### {n}"}
            for n in range(6)
        ]
        pandas.DataFrame(rows).to_parquet(f"gsm8k/main/{split}-00000-of-00001.parquet")


def test_the_page_has_commands():
    assert len(COMMANDS) >= 8


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_works(tiny_model_folder, command):
    name, *options = shlex.split(command)
    models = ["--backbone", str(tiny_model_folder), "--device", "cpu", "--dtype", "float32"]
    models += [] if "cot" in options else ["--assistant", str(tiny_model_folder)]
    done = CliRunner().invoke(APPS[name], [*options, *models, *SMALL[name]])
    assert done.exit_code == 0, done.stderr
    if command == COMMANDS[0]:
        shown = next(block for block in BLOCKS if block.startswith("data: "))
        assert done.stdout.startswith(shown)
    if "--preview-data" not in options:
        assert done.stderr.count("data: question=") == 1
