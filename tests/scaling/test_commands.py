"""What the four commands have in common: version, completion, true examples, and how to install what is optional."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from analysis import cli as report
from analysis.arguments import parse_run
from analysis.compute import AXES
from analysis.voters import chosen
from scaling import cli as run
from scaling.config import RunConfig, load_config
from scaling.probe import cli as probe
from scaling.probe.config import ProbeConfig
from scaling.training import cli as train
from scaling.training.config import TrainConfig
from sweeps import cli as sweep
from sweeps.grid import read_grid, recipes

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = {
    **{"scale-run": run, "scale-train": train, "scale-probe": probe},
    **{"scale-report": report, "scale-sweep": sweep},
}
EVERY = [(name, line) for name, module in COMMANDS.items() for line in module.EXAMPLES]


def call(name, *arguments):
    return CliRunner().invoke(COMMANDS[name].app, list(arguments), prog_name=name, env={"COLUMNS": "200"})


@pytest.mark.parametrize("name", COMMANDS)
def test_the_version_is_the_packages(name):
    done = call(name, "--version")
    assert (done.exit_code, done.stdout) == (0, f"softcotpp {version('softcotpp')}\n")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(name, shell, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = call(name, "--show-completion", shell)
    assert done.exit_code == 0, done.output
    assert f"_{name.replace('-', '_').upper()}_COMPLETE" in done.stdout
    assert "--install-completion" in call(name, "--help").stdout


def test_completion_knows_the_options():
    environment = {"_SCALE_RUN_COMPLETE": "complete_bash", "COMP_WORDS": "scale-run --latent-p", "COMP_CWORD": "1"}
    done = CliRunner().invoke(run.app, [], prog_name="scale-run", env=environment)
    assert done.stdout.split() == ["--latent-paths"]


def helps(name):
    """(the command's own help, each of its sub-commands' helps) as (words that call it, text)."""
    group = typer.main.get_command(COMMANDS[name].app)
    subs = list(getattr(group, "commands", {}))
    return [([*words], call(name, *words, "--help").stdout) for words in ([], *([sub] for sub in subs))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_examples_that_stand_in_the_list(name):
    shown = set()
    for words, text in helps(name):
        _, _, end = text.rpartition("Examples:")
        lines = [line.strip() for line in end.splitlines() if line.strip()]
        assert lines, words
        assert all(line.startswith(" ".join([name, *words])) for line in lines)
        assert set(lines) <= set(COMMANDS[name].EXAMPLES)
        shown |= set(lines)
    assert shown == set(COMMANDS[name].EXAMPLES)


def parsed(command: click.Command, name: str, arguments: list[str]) -> click.Context:
    return command.make_context(name, arguments)


@pytest.mark.parametrize(("name", "line"), EVERY)
def test_an_example_is_what_the_command_takes(name, line):
    first, *arguments = shlex.split(line)
    assert first == name
    command = typer.main.get_command(COMMANDS[name].app)
    if name == "scale-sweep":
        checked_sweep(command, arguments)
        return
    options = parsed(command, name, arguments).params
    if name == "scale-report":
        assert options["compute"] in AXES
        assert chosen(options["voters"], validation=False, scorer=False)
        names = {parse_run(one).name for one in options["runs"]}
        assert options["baseline"] is None or options["baseline"] in names
        return
    kind = {"scale-run": RunConfig, "scale-train": TrainConfig, "scale-probe": ProbeConfig}[name]
    given = {key: value for key, value in options.items() if key in kind.model_fields and value is not None}
    load_config(options["config"], given, kind).resolved()


def checked_sweep(group, arguments) -> None:
    sub, *rest = arguments
    context = parsed(group.commands[sub], sub, rest)
    options = context.params
    if sub == "recipes":
        return
    place = options["file"]
    assert place in recipes() or place == "grid.yaml" or sub in ("status", "report")
    grid = place if place in recipes() else "scaling-curve"
    read_grid(grid, scale=options["scale"], changes=options["change"] or [])
    if sub == "report":  # what is left over goes to scale-report
        parsed(typer.main.get_command(report.app), "scale-report", ["run", *context.args])


def test_the_package_itself_is_scale_run():
    done = subprocess.run(
        [sys.executable, "-m", "scaling", "--version"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"softcotpp {version('softcotpp')}\n")


def test_what_is_optional_is_installed_in_one_way_wherever_that_is_told():
    """Mistake: `softcotpp[hub]` here and `.[openai]` there, of which the latter needs a clone as current folder."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    folders = ("analysis", "contrastive", "scaling", "sweeps", "docs")
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*") if file.suffix in (".py", ".md")]
    told = {}
    for file in [*files, REPOSITORY / "README.md"]:
        text = file.read_text()
        for hint in re.findall(r"pip install[^\n`]*\[[^\n]*?\]\"?", text):
            told.setdefault(hint, file)
        for extra in re.findall(r"\binstall\(['\"]([\w-]+)['\"]\)", text):
            told.setdefault(f'pip install "softcotpp[{extra}]"', file)
    assert len(told) >= 4
    wanted = {f'pip install "softcotpp[{extra}]"' for extra in extras}
    built = {'pip install "softcotpp[{extra}]"'}  # as it is written where it is put together
    assert {hint: str(file) for hint, file in told.items() if hint not in wanted | built} == {}


@pytest.mark.parametrize("name", ["scale-train", "scale-report", "scale-sweep"])
def test_an_empty_folder_is_not_the_current_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = {"scale-train": [], "scale-report": ["x"], "scale-sweep": ["plan", "scaling-curve"]}[name]
    done = call(name, *others, "--out", "")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{name}: `--out` is empty")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_runs_names_the_runs_inside(tmp_path):
    for name in ("first", "second one"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    (tmp_path / "runs" / "other").mkdir()
    done = call("scale-report", str(tmp_path / "runs"))
    assert done.exit_code == 2
    first, second = (tmp_path / "runs" / name for name in ("first", "second one"))
    assert f"holds 2: give those to compare, as in `scale-report {first} '{second}'`" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["scale-report", "x", "--compute", "flop"], "flops"),
        (["scale-report", "x", "--voters", "flt"], "flat"),
        (["scale-sweep", "run", "scaling-curve", "--on", "rai"], "ray"),
        (["scale-sweep", "plan", "scaling-curve", "--scale", "smal"], "small"),
        (["scale-sweep", "plan", "scaling-curv"], "scaling-curve"),
        (["scale-run", "--split", "tset"], "test"),
        (["scale-run", "--task", "gsm9k"], "gsm8k"),
    ],
)
def test_other_fixed_words_name_the_nearest_too(arguments, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code == 2
    assert f"Did you mean `{meant}`?" in done.stderr
