"""`scale-train --method lora` on the tiny model: what it learns, what it writes, that it resumes, and what it forgets."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from contrastive.parallel import Processes
from contrastive.target_loss import Example, Reader
from contrastive.train import METRICS_FILE, STATE_FILE
from scaling.cli import app as run_app
from scaling.methods.build import Built
from scaling.methods.cot import ChainOfThought
from scaling.methods.kinds import Trait
from scaling.models import adapters, loading
from scaling.records.errors import Interrupted, UsageError
from scaling.records.files import sha256
from scaling.records.journal import load
from scaling.records.settings import names
from scaling.tasks.task import PlainTask, ask
from scaling.training import check, lora
from scaling.training import run as training_run
from scaling.training.adapter import LoraTrainer, new_adapter
from scaling.training.check import Check, compare, held_out, right_answers, settings_of
from scaling.training.cli import app
from scaling.training.config import TrainConfig
from scaling.training.lora import train_lora
from scaling.training.run import describe, publish
from scaling.training.targets import ExampleBuilder, split_of

OF_THOUGHTS, OF_LORA = names(TrainConfig, Trait.THINKER, Trait.THOUGHTS), names(TrainConfig, Trait.ADAPTER)


class Quiet:
    """Remembers, and stops the training where it is told to."""

    def __init__(self, *, stop_at=None):
        self.said, self.losses, self._stop_at = [], [], stop_at

    def status(self, text):
        self.said.append(text)

    def sampling(self):
        return self

    def start(self, grid, done, folder):
        pass

    def completion(self, completion):
        pass

    def started(self, progress, _schedule):
        self.first = progress.step

    def stepped(self, progress, _row):
        if progress.step == self._stop_at:
            raise KeyboardInterrupt

    def examined(self, _progress, figures):
        self.losses.append(figures.loss)


@pytest.fixture
def settings(tiny_model_folder, tmp_path):
    """`settings(**changes)`: 6 questions, rank 4, 6 steps."""
    standard = {
        **{"method": "lora", "backbone": str(tiny_model_folder), "device": "cpu", "dtype": "float32", "rank": 4},
        **{"limit": 6, "validation": 3, "max_steps": 6, "batch_size": 3, "validate_every": 2, "lr": 0.01},
        "out": tmp_path / "trained",
    }
    return lambda **changes: TrainConfig.model_validate({**standard, **changes})


@pytest.fixture
def model(tiny_model_folder):
    return loading.load(str(tiny_model_folder), name=str(tiny_model_folder), device="cpu", dtype=torch.float32)


@pytest.fixture
def questions_at(tmp_path):
    """`questions_at(name, number)`: a file of questions that are not those of the arithmetic task."""

    def write(name="held.jsonl", number=4):
        rows = [{"id": f"h{n}", "question": f"What is {n} + 1?", "answer": n + 1} for n in range(number)]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return write


@pytest.fixture
def short(monkeypatch):
    """Checks have at most 8 new tokens."""

    def settings_of_short(*arguments, **named):
        return settings_of(*arguments, **named).model_copy(update={"max_new_tokens": 8})

    for module in (check, lora):
        monkeypatch.setattr(module, "settings_of", settings_of_short)
    return True


def examples_of(config, model):
    split = split_of(config)
    build = ExampleBuilder(model, None, task=PlainTask("number"), num_slots=0)
    return [build(question, ask(PlainTask("number"), "solution", question)) for question in split.train]


def trainer_of(model, examples, tmp_path, **changes):
    adapter = new_adapter(model, rank=4, seed=0)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:  # so that A has a gradient too
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    given = {"micro_batch": 8, "schedule": None, "keep": None, "watcher": None, "folder": tmp_path}
    return LoraTrainer(
        train=examples, validation=examples, model=adapter, reader=Reader(model.model), **{**given, **changes}
    )


# ---- loss and gradient


def test_the_prompt_is_that_of_cot_and_the_loss_that_of_the_model(model, settings, tmp_path):
    config = settings().resolved()
    examples = examples_of(config, model)
    (prompt,) = ChainOfThought(model, task=PlainTask("number")).prompts(split_of(config).train[0], [0])
    assert (examples[0].prefix, examples[0].suffix) == (prompt.prefix, prompt.suffix)
    total = tokens = 0.0
    for example in examples:
        ids = torch.tensor([(*example.prefix, *example.target)])
        with torch.no_grad():
            log_probs = model.model(input_ids=ids).logits[0].log_softmax(-1)
        for place, token in enumerate(example.target, start=len(example.prefix)):
            total, tokens = total - float(log_probs[place - 1, token]), tokens + 1
    trainer = LoraTrainer(
        train=[],
        validation=examples,
        model=new_adapter(model, rank=4, seed=0),
        reader=Reader(model.model),
        **{"micro_batch": 8, "schedule": None, "keep": None, "watcher": None, "folder": tmp_path},
    )
    figures = trainer.examine()
    assert figures.loss == figures.before == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 2, "recompute": True}])
def test_the_gradient_does_not_depend_on_how_a_batch_is_split(model, settings, tmp_path, changes):
    examples = examples_of(settings().resolved(), model)
    trainer = trainer_of(model, examples, tmp_path)
    row, tokens = trainer.backward(examples, step=0)
    expected = [parameter.grad.clone() for parameter in trainer.trained()]
    assert all(gradient.abs().max() > 0 for gradient in expected)
    assert tokens == sum(len(example.target) for example in examples)
    for parameter in trainer.trained():
        parameter.grad = None
    for name, value in changes.items():
        setattr(trainer, name, value)
    again, _ = trainer.backward(examples, step=0)
    assert again["language"] == pytest.approx(row["language"], rel=1e-5)
    for parameter, gradient in zip(trainer.trained(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_two_processes_add_up_to_the_gradient_of_one(model, settings, tmp_path):
    """Each has its share, and the shares sum to the whole, as `add_up` has it; one may have no question at all."""
    examples = examples_of(settings().resolved(), model)[:1]
    trainer = trainer_of(model, examples, tmp_path)
    trainer.backward(examples, step=0)
    whole = [parameter.grad.clone() for parameter in trainer.trained()]
    shares = []
    for rank in range(2):
        for parameter in trainer.trained():
            parameter.grad = None
        part = Processes()
        part.rank, part.count = rank, 2
        part.add_up = lambda _: None
        trainer.processes = part
        trainer.backward(examples, step=0)
        shares.append([parameter.grad.clone() for parameter in trainer.trained()])
    for expected, first, second in zip(whole, *shares, strict=True):
        torch.testing.assert_close(first + second, expected)


# ---- whole trainings


def test_what_a_training_writes_and_that_its_loss_falls(settings, tmp_path, tiny_model_folder):
    watch = Quiet()
    result = train_lora(settings(max_steps=20, prefill="Well,"), watch, Processes())
    out = tmp_path / "trained"
    names = {adapters.CONFIG_FILE, adapters.WEIGHTS_FILE, "train.json", "README.md", METRICS_FILE, STATE_FILE}
    assert {path.name for path in out.iterdir()} == names
    assert result.figures.before == watch.losses[0]
    assert result.figures.loss == min(watch.losses) == result.progress.best
    assert result.figures.loss < 0.9 * result.figures.before
    config = json.loads((out / adapters.CONFIG_FILE).read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    assert config["base_model_name_or_path"] == str(tiny_model_folder)
    # A and B of 7 linear layers in each of 2 layers: rank x (inputs + outputs)
    wide, narrow, inner = 32, 16, 64
    linear = [(wide, wide), (wide, narrow), (wide, narrow), (wide, wide), *[(wide, inner)] * 2, (inner, wide)]
    assert result.parameters == 2 * sum(4 * (inputs + outputs) for inputs, outputs in linear)
    about = json.loads((out / "train.json").read_text())
    assert about["metrics"] == json.loads(json.dumps(asdict(result.figures)))
    assert not {*OF_THOUGHTS} & set(about)
    card = (out / "README.md").read_text()
    assert f"{result.figures.loss:.4f}" in card
    assert "library_name: peft" in card
    assert f"scale-run --method lora --adapter FOLDER --backbone {tiny_model_folder} --prefill Well,\n" in card.replace(
        "'", ""
    )


def test_the_adapter_kept_is_the_best_one(settings, tmp_path, model):
    """The learning rate is so high that the second step makes it worse."""
    watch = Quiet(stop_at=3)
    with pytest.raises(Interrupted):
        train_lora(settings(lr=0.5, validate_every=1), watch, Processes())
    assert watch.losses[1] < watch.losses[2]
    metrics = json.loads((tmp_path / "trained" / "train.json").read_text())["metrics"]
    assert (metrics["loss"], metrics["before"]) == (watch.losses[1], watch.losses[0])
    config = settings().resolved()
    found = adapters.find(str(tmp_path / "trained"))
    adapter = adapters.load(found, model)
    build, total, tokens = ExampleBuilder(model, None, task=PlainTask("number"), num_slots=0), 0.0, 0
    for question in split_of(config).validation:
        example: Example = build(question, ask(PlainTask("number"), "solution", question))
        total, tokens = total + float(Reader(adapter.base_model.model).whole([example])), tokens + len(example.target)
    assert total / tokens == pytest.approx(metrics["loss"], rel=1e-5)


def test_the_merged_folder_is_the_backbone_with_the_adapter(settings, tmp_path, run):
    result = train_lora(settings(merge=True), Quiet(), Processes())
    assert result.merged == tmp_path / "trained" / "merged"
    assert not list((tmp_path / "trained").glob(".*"))
    cot = {"latent_paths": None}
    expected = run(tmp_path / "adapter", method="lora", adapter=tmp_path / "trained", **cot)
    plain = run(tmp_path / "plain", method="cot", **cot)
    assert run(tmp_path / "merged", method="cot", backbone=str(result.merged), **cot) == expected != plain
    assert run(tmp_path / "soft", method="softcot++", backbone=str(result.merged), thinker="untrained")
    described = [json.loads((tmp_path / name / "run.json").read_text())["config"] for name in ("adapter", "merged")]
    assert described[0]["merged_fingerprint"] == described[1]["backbone_fingerprint"]


def test_adapter_and_merged_model_know_their_questions_and_their_hints_run(settings, tmp_path, questions_at):
    """Trained on a single file: what either hint names is then run on that file, and notices."""
    data = questions_at("own.jsonl", 12)
    given = options_of(settings(limit=9, merge=True))
    done = CliRunner().invoke(app, [*given, "--merge", "--data", str(data)])
    assert done.exit_code == 0, done.output
    hints = [line.partition("use it with: ")[2] for line in done.stdout.splitlines() if "use it with: " in line]
    assert len(hints) == 2
    held = {question.id for question in split_of(settings(limit=9, data=data).resolved()).validation}
    few = ["--samples", "1", "--max-new-tokens", "2", "--json", "--limit"]
    for number, hint in enumerate(hints):
        program, *arguments = shlex.split(hint)
        assert program == "scale-run"
        out = tmp_path / f"run{number}"
        ran = CliRunner().invoke(run_app, [*arguments, *few, "1", "--out", str(out / "as-printed")])
        assert ran.exit_code == 0, ran.output
        ran = CliRunner().invoke(run_app, [*arguments, *few, "6", "--data", str(data), "--out", str(out / "own")])
        assert "of the 6 questions (" in ran.stderr
        overlap = json.loads((out / "own" / "run.json").read_text())["environment"]["overlap"]
        asked = {f"h{n}" for n in range(6)}
        assert (set(overlap["trained"]), set(overlap["validated"])) == (asked - held, asked & held)


def test_resume_ends_with_the_adapter_of_an_uninterrupted_training(settings, tmp_path):
    whole = train_lora(settings(out=tmp_path / "whole"), Quiet(), Processes())
    with pytest.raises(Interrupted, match="--resume"):
        train_lora(settings(), Quiet(stop_at=5), Processes())
    with pytest.raises(UsageError, match="add `--resume`"):
        train_lora(settings(), Quiet(), Processes())
    watch = Quiet()
    result = train_lora(settings(resume=True), watch, Processes())
    assert watch.first == 4
    assert result.figures == whole.figures
    for name in (adapters.WEIGHTS_FILE, STATE_FILE):
        found, expected = load_file(tmp_path / "trained" / name), load_file(tmp_path / "whole" / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    with pytest.raises(UsageError, match="`--rank` was 4, now 2"):
        train_lora(settings(resume=True, rank=2), Quiet(), Processes())


def test_a_finished_training_is_merged_later(settings):
    first = train_lora(settings(), Quiet(), Processes())
    second = train_lora(settings(resume=True, merge=True), Quiet(), Processes())
    assert second.figures == first.figures
    assert (second.merged / "config.json").is_file()


def test_another_seed_begins_elsewhere(settings, tmp_path):
    for seed in (0, 1):
        train_lora(settings(out=tmp_path / f"seed-{seed}", seed=seed), Quiet(), Processes())
    first, second = (load_file(tmp_path / f"seed-{seed}" / adapters.WEIGHTS_FILE) for seed in (0, 1))
    assert all(not torch.equal(first[name], second[name]) for name in first)


def test_own_chains_are_targets_too(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        training_run,
        "own_chains",
        lambda split, *_: (
            {q.id: ["so it is"] for q in split.task.questions} | {q.id: ["so it is"] for q in split.validation}
        ),
    )
    result = train_lora(settings(targets="self", max_steps=20), Quiet(), Processes())
    assert result.figures.loss < result.figures.before


def test_only_the_adapter_and_its_card_are_published(monkeypatch, settings, tmp_path):
    train_lora(settings(), Quiet(), Processes())
    asked = []

    class Hub:
        def create_repo(self, name, **_):
            asked.append(name)

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, ignore_patterns):
            assert ignore_patterns == ["*/*"]
            asked.append((repo_id, folder_path, sorted(allow_patterns)))

    monkeypatch.setattr(training_run, "HfApi", Hub)
    publish(tmp_path / "trained", "me/mine")
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer*", "train.json"]
    assert asked == ["me/mine", ("me/mine", tmp_path / "trained", files)]


# ---- options


@pytest.mark.parametrize("key", OF_THOUGHTS)
def test_options_of_thoughts_are_refused(settings, key):
    """Even with the value that they have by default, unless that leaves something out."""
    value = "loss" if key == "select" else TrainConfig.model_fields[key].default or 1
    option = f"`--{key.replace('_', '-')}` is for `--method softcot"
    with pytest.raises(UsageError, match=option):
        settings(**{key: value}).resolved()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 8}, "--rank"),
        ({"merge": True}, "--merge"),
        ({"check_on": "x"}, "--check-on"),
        ({"check_limit": 3}, "--check-limit"),
    ],
)
def test_options_of_lora_are_refused_without_it(changes, said):
    with pytest.raises(UsageError, match=f"`{said}` is for `--method lora"):
        TrainConfig.model_validate(changes).resolved()


def test_check_limit_needs_check_on(settings):
    with pytest.raises(UsageError, match="name a file"):
        settings(check_limit=3).resolved()


def test_defaults_depend_on_the_method(settings):
    resolved = settings(rank=None, lr=None, check_on="x").resolved()
    assert (resolved.lr, resolved.rank, resolved.check_limit) == (2e-4, 16, 50)
    assert resolved.resolved() == resolved
    assert TrainConfig().resolved().lr == 2e-3


def test_a_thinkers_description_has_nothing_of_lora(model):
    """So that folders of earlier trainings are still known as such."""
    config = TrainConfig(limit=4, validation=2).resolved()
    described = describe(config, split_of(config), {"backbone": model, "assistant": model})
    assert not {"method", *OF_LORA} & set(described)
    assert {key for key in OF_THOUGHTS if getattr(config, key) is not None} < set(described)
    assert described["lr"] == 2e-3


# ---- the check


def test_a_comparison_counts_each_question_once():
    """Right before a, b, c, d and after d, e: three only before, one only after. Of 4 tosses 3 or more are heads, or 3 or
    more tails, with probability 2 x (4 + 1) / 16."""
    before = {name: name in "abcd" for name in "abcdef"}
    after = {name: name in "de" for name in "abcdef"}
    assert compare("t", before, after) == Check("t", 6, 4 / 6, 2 / 6, 3, 1, pytest.approx(10 / 16))


def test_no_difference_is_no_evidence():
    same = {"a": True, "b": False}
    assert compare("t", same, same) == Check("t", 2, 0.5, 0.5, 0, 0, 1.0)


def test_the_check_is_in_train_json_card_and_result(settings, tmp_path, monkeypatch, questions_at):
    answers = [{"h0": True, "h1": True, "h2": False, "h3": True}, {"h0": False, "h1": False, "h2": False, "h3": True}]
    monkeypatch.setattr(check, "right_answers", lambda *_, **__: answers.pop(0))
    result = train_lora(settings(check_on=questions_at(), merge=True), Quiet(), Processes())
    assert result.check == Check("held", 4, 0.75, 0.25, 2, 0, 0.5)
    for folder in (result.folder, result.merged):
        assert json.loads((folder / "train.json").read_text())["metrics"]["check"] == asdict(result.check)
    card = (tmp_path / "trained" / "README.md").read_text()
    for said in ("75.0%", "25.0%", "| right only before | 2 |", "| exact McNemar p | 0.500 |"):
        assert said in card
    assert result.to_dict()["check"]["only_before"] == 2


@pytest.mark.usefixtures("short")
def test_the_check_is_two_greedy_runs(settings, tmp_path, questions_at):
    """Ordinary ones, so that a second time nothing is drawn."""
    config = settings(check_on=questions_at(), check_limit=2, lr=0.05)
    first = train_lora(config, Quiet(), Processes())
    before, after = sorted((tmp_path / "trained" / "checks").iterdir())
    (cot, chains), (adapted, others) = load(before), load(after)
    assert (cot["config"]["method"], adapted["config"]["method"]) == ("cot", "lora")
    assert cot["config"]["temperature"] == adapted["config"]["temperature"] == 0
    assert {done.key for done in chains} == {done.key for done in others} == {("h0", 0, 0), ("h1", 0, 0)}
    assert first.check.before == sum(done.correct for done in chains) / 2
    assert first.check.after == sum(done.correct for done in others) / 2
    weights = tmp_path / "trained" / adapters.WEIGHTS_FILE
    assert adapted["config"]["adapter_sha256"] == sha256(weights)
    again = train_lora(config.model_copy(update={"resume": True}), Quiet(), Processes())
    assert again.check == first.check
    assert len(list((tmp_path / "trained" / "checks").iterdir())) == 2


def test_a_check_fits_the_backbones_context(settings, tmp_path, questions_at, model, monkeypatch):
    """The tiny model's context is 512 tokens, and completions may have as many on other backbones."""
    config = settings(check_on=questions_at()).resolved()
    task, run_config = held_out(config, split_of(config)), settings_of(config, method="cot")
    built = Built(ChainOfThought(model, task=task.definition), run_config)
    seen = []

    def stop(setup, *_, **__):
        seen.append(setup)
        raise Interrupted("")

    monkeypatch.setattr(check, "carry_out", stop)
    with pytest.raises(Interrupted, match="`--resume` goes on"):
        right_answers(built, task, Quiet(), parent=tmp_path)
    longest = max(one.prompt_tokens for one in seen[0].asked)
    assert seen[0].config.max_new_tokens == 512 - longest < run_config.max_new_tokens


def test_questions_that_are_trained_on_are_refused(settings, questions_at):
    data = questions_at("data/train.jsonl", 20)
    config = settings(data=data.parent, check_on=questions_at(), limit=None).resolved()
    with pytest.raises(UsageError, match=r"4 of its 4 are \(as h0\)"):
        held_out(config, split_of(config))


def test_places_without_questions_to_check_on(settings, tmp_path):
    split = split_of(settings().resolved())
    with pytest.raises(UsageError, match=r"without a test split"):
        held_out(settings(check_on=tmp_path).resolved(), split)
    with pytest.raises(UsageError, match="`--check-on` must be a file or a folder"):
        held_out(settings(check_on=tmp_path / "no").resolved(), split)
    assert held_out(settings().resolved(), split) is None


# ---- the command


def options_of(config):
    named = (
        "method",
        "backbone",
        "limit",
        "validation",
        "rank",
        "max_steps",
        "validate_every",
        "device",
        "dtype",
        "out",
    )
    return [part for key in named for part in (f"--{key.replace('_', '-')}", str(getattr(config, key)))]


@pytest.mark.usefixtures("short")
def test_the_command_prints_its_result_as_json(settings, questions_at):
    check = ["--check-on", str(questions_at()), "--check-limit", "1"]
    done = CliRunner().invoke(app, [*options_of(settings()), *check, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["step"], result["check"]["questions"], result["merged"]) == (6, 1, None)
    assert result["loss"] <= result["before"]
    assert not math.isnan(result["before"])


def test_the_command_shows_a_table(settings):
    done = CliRunner().invoke(app, [*options_of(settings()), "--merge"])
    assert done.exit_code == 0, done.output
    for said in (
        "loss before training",
        "trained parameters",
        "scale-run --method lora --adapter",
        "scale-run --method cot --backbone",
    ):
        assert said in done.stdout
    assert "validation at step 6: loss" in done.stderr


def test_a_refused_option_ends_with_two_and_a_sentence():
    done = CliRunner().invoke(app, ["--method", "lora", "--latent-paths", "8"])
    assert done.exit_code == 2
    assert "`--latent-paths` is for `--method softcot++ or prompt-tuning or" in done.stderr
    done = CliRunner().invoke(app, ["--rank", "8"])
    assert done.exit_code == 2
    assert "`--rank` is for `--method lora or coconut or ccot`, and `--method` is softcot++" in done.stderr
