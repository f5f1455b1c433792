"""The declaration of the options: complete, and what is derived from it follows it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from analysis.methods import may_differ
from scaling import cli
from scaling.config import RunConfig, idle_options, load_config, option
from scaling.methods.kinds import KINDS, Trait
from scaling.options import page, takes
from scaling.probe import cli as probe_cli
from scaling.probe.config import ProbeConfig
from scaling.records.errors import UsageError
from scaling.records.journal import config_hash
from scaling.records.settings import Differs, Effect, Setting, Tag, names, run_names, settings_of
from scaling.training import cli as training_cli
from scaling.training.config import TrainConfig
from sweeps.grid import check_key
from sweeps.points import idle_in_training

REPOSITORY = Path(__file__).parents[2]
MODELS = (RunConfig, TrainConfig, ProbeConfig)
EVERY = [(model, name) for model in MODELS for name in model.model_fields]
IN_SWEEPS = [(model, name) for model, name in EVERY if model is not ProbeConfig]
COMMANDS = [(cli.scale_run, RunConfig), (training_cli.scale_train, TrainConfig), (probe_cli.scale_probe, ProbeConfig)]


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_every_option_says_what_it_is(model, name):
    own = settings_of(model)[name]
    assert own.help.endswith(".")
    assert own.group
    assert own.has(own.effect)
    assert bool(own.whose) <= bool(own.used_by)


def test_a_field_that_says_nothing_is_found():
    class Bare(BaseModel):
        size: Annotated[int, Setting("Its size.", "All")] = 1
        more: int = 1

    with pytest.raises(TypeError, match=r"Bare\.more"):
        settings_of(Bare)


def test_a_command_has_the_options_of_its_settings_before_its_own():
    class Small(BaseModel):
        size: Annotated[int, Setting("Its size.", "First")] = 1
        fast: Annotated[bool, Setting("At once.", "Second")] = False
        calm: Annotated[bool, Setting("Slowly.", "Second")] = True
        place: Annotated[Path | None, Setting("Where.", "Second")] = None

    heard: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    @takes(Small)
    def command(loud: bool = False, **given: Any) -> None:
        heard.update(given, loud=loud)

    done = CliRunner().invoke(app, ["--size", "3", "--no-calm", "--loud"])
    assert done.exit_code == 0, done.output
    assert heard == {"size": 3, "fast": None, "calm": False, "place": None, "loud": True}
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout
    places = [shown.index(text) for text in ("First", "Its size.", "Second", "At once.", "Slowly.", "<path>", "Where.")]
    assert places == sorted(places)
    assert "--no-fast" not in shown


@pytest.mark.parametrize(("command", "model"), COMMANDS)
def test_the_parameters_of_the_commands_begin_with_the_settings(command, model):
    assert list(inspect.signature(command).parameters)[: len(model.model_fields)] == list(model.model_fields)


@pytest.mark.parametrize("name", RunConfig.model_fields)
def test_the_hash_of_a_run_is_of_what_makes_it_another_one(name):
    config = {**RunConfig().model_dump(mode="json")}
    same = config_hash(config) == config_hash({**config, name: "something else"})
    assert same == (settings_of(RunConfig)[name].effect is not Effect.IDENTITY)


@pytest.mark.parametrize("name", RunConfig.model_fields)
def test_what_may_differ_between_seeds_may_differ_between_methods(name):
    between = [level for level in (Differs.SEEDS, Differs.METHODS) if name in may_differ(level)]
    assert between in ([], [Differs.METHODS], [Differs.SEEDS, Differs.METHODS])
    assert bool(between) >= (settings_of(RunConfig)[name].effect is Effect.FREE)


def test_facts_may_differ_where_their_option_may():
    seeds, methods = may_differ(Differs.SEEDS), may_differ(Differs.METHODS)
    assert {"thinker_sha256", "adapter_sha256", "merged_fingerprint"} <= seeds
    assert {"assistant_fingerprint", "exemplars"} <= methods - seeds
    assert not {"backbone_fingerprint", "first_question", ""} & methods


@pytest.mark.parametrize("method", KINDS)
def test_an_option_is_idle_where_the_method_lacks_what_it_needs(method):
    own = settings_of(RunConfig)
    needed = {name: own[name].used_by for name in own if own[name].used_by}
    assert idle_options(method) == {name for name, trait in needed.items() if trait not in KINDS[method].traits}


def test_options_that_trainings_share_with_runs_are_those_of_runs():
    assert set(names(TrainConfig, Tag.INHERITED)) <= set(RunConfig.model_fields)


@pytest.mark.parametrize(("model", "name"), IN_SWEEPS)
def test_a_grid_can_set_what_the_declaration_does_not_forbid(model, name):
    key = name if model is RunConfig else f"train.{name}"
    if why := settings_of(model)[name].not_in_sweeps:
        with pytest.raises(UsageError, match=why):
            check_key(key)
    else:
        check_key(key)


@pytest.mark.parametrize("method", ["softcot", "softcot-p", "softcot++", "lora"])
def test_one_path_has_nothing_to_contrast(method):
    contrast = set(names(TrainConfig, Tag.CONTRAST))
    assert contrast.isdisjoint(idle_in_training(method, "view")) == (method == "softcot++")
    assert contrast - idle_in_training(method, "none") == ({"contrastive"} if method == "softcot++" else set())
    assert idle_in_training(method, None) >= idle_options(method, TrainConfig)


def test_a_method_that_is_none_is_told_those_that_are():
    with pytest.raises(
        UsageError, match=r"`--method` is 'softcat': give softcot\+\+, softcot, .*, lora, .*or .*mean `softcot`"
    ):
        load_config(None, {"method": "softcat"}, RunConfig)


@pytest.mark.parametrize("value", [3, None, ["cot"], {}])
def test_a_method_is_named_by_a_text(value):
    with pytest.raises(UsageError, match=r"`--method` is .*: input should be a valid string"):
        load_config(None, {"method": value}, RunConfig)


def test_every_option_stands_in_the_documentation_as_it_is_declared():
    """If this fails: `python -m scaling.options > docs/options.md`."""
    written = (REPOSITORY / "docs" / "options.md").read_text()
    assert written == page() + "\n"
    assert all(f"| `{option(name)}` | " in written for _, name in EVERY)


def test_names_are_asked_for_by_any_mark():
    assert run_names(Effect.SIZE) == ("limit", "latent_paths", "samples")
    of_shots = ("shots", "shot_format", "rationale")
    assert run_names(Trait.SHOTS) == of_shots
    assert set(run_names(Effect.SIZE, Trait.SHOTS)) == {"limit", "latent_paths", "samples", *of_shots}


# ---- values that a run decides


@pytest.mark.parametrize("key", ["num_paths", "num_slots", "longest", "noise_size"])
def test_a_value_that_is_not_decided_yet_is_not_made_up(key):
    with pytest.raises(ValueError, match="is not decided yet"):
        getattr(RunConfig(method="softcot-p"), key)


@pytest.mark.parametrize("method", KINDS)
def test_what_depends_on_no_checkpoint_is_decided_by_resolving(method):
    given = {"adapter": "a"} if KINDS[method].has(Trait.ADAPTER) else {}
    config = RunConfig(method=method, thinker="untrained" if method.startswith("softcot") else None, **given).resolved()
    assert config.longest == config.max_new_tokens
    assert config.num_paths == config.latent_paths
    if config.perturbed:
        assert config.noise_size == config.noise
    if not config.slots:
        assert config.num_slots == 0


def test_no_noise_is_a_size_too():
    assert RunConfig(method="softcot-p", noise=0).resolved().noise_size == 0
