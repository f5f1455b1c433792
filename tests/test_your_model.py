"""Every command of docs/your-model.md runs, and every refusal that it lists is one of ours. Models are tiny, and no network
is used."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

import scaling.cli
import scaling.training.cli
from scaling.models import model_files

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "your-model.md").read_text()
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)
APPS = {
    "scale-run": (scaling.cli.app, ["--limit", "1", "--samples", "1", "--max-new-tokens", "4"]),
    "scale-train": (scaling.training.cli.app, ["--limit", "4", "--validation", "2", "--max-steps", "1"]),
}


@pytest.fixture(scope="module")
def folder(tiny_model_folder, tmp_path_factory):
    """A folder in which the names of the page are tiny models: a folder, a GGUF file and the Hub's cache."""
    place = tmp_path_factory.mktemp("page")
    shutil.copytree(tiny_model_folder, place / "my-model")
    (place / "my-model.gguf").write_bytes(b"GGUF")
    repository = place / "hub" / "models--Qwen--Qwen2.5-0.5B-Instruct"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copytree(tiny_model_folder, repository / "snapshots" / ("a" * 40))
    return place


@pytest.mark.parametrize("command", COMMANDS)  # in their order, as one trains what the next one uses
def test_the_command_runs(folder, tiny_model_folder, monkeypatch, command):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(
        model_files, "_unpack", lambda _, to: shutil.copytree(tiny_model_folder, to, dirs_exist_ok=True)
    )
    name, *options = shlex.split(command)
    app, sizes = APPS[name]
    done = CliRunner().invoke(app, [*options, *sizes], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_the_page_has_commands_and_fits_a_screen():
    assert len(COMMANDS) >= 5
    assert len(PAGE.splitlines()) <= 80


def test_every_refusal_of_the_page_is_said_somewhere():
    """A sentence may be broken over lines of code, and have values in it."""
    code = "".join(path.read_text() for path in (REPOSITORY / "scaling").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", code)
    listed = [
        said for row in re.findall(r"^\| (`.+?) \|", PAGE, re.MULTILINE) for said in re.findall(r"`([^`]+)`", row)
    ]
    refusals = listed[listed.index("comes with code of its own") :]
    assert len(refusals) >= 10
    for said in refusals:
        pattern = re.escape(said).replace("cpu", r"\{device\}")
        assert re.search(pattern, joined), said
