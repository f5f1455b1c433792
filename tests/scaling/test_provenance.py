"""What runs say of their thinker's training: before sampling, in run.json, in the table; and what they leave out."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from contrastive import checkpoint
from scaling.cli import app
from scaling.config import RunConfig
from scaling.display import rows
from scaling.methods.build import parts_of
from scaling.preview import preview
from scaling.records.errors import UsageError
from scaling.records.overlap import digests_of
from scaling.records.records import Question
from scaling.run import execute
from scaling.tasks.catalogue import task_of


@pytest.fixture
def questions_at(tmp_path):
    """`questions_at(name, first, below, prefix)`: a file of sums with ids of this prefix."""

    def write(name, first, below, prefix="q"):
        lines = [
            {
                "id": f"{prefix}{n}",
                "question": f"What is {n} + 1?",
                "answer": n + 1,
                "rationale": [f"{n} + 1 = {n + 1}."],
            }
            for n in range(first, below)
        ]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return path

    return write


def sums(first, below):
    """The same texts under other ids, in capitals and with other white space."""
    return [Question(f"other{n}", f"WHAT  is\n{n} + 1?", str(n + 1)) for n in range(first, below)]


@pytest.fixture
def trained_on(make_checkpoint):
    """`trained_on(name, trained, validated)`: the folder of a thinker of the tiny model that says so of itself."""

    def make(name="own", trained=(), validated=()):
        folder = make_checkpoint()
        config = json.loads((folder / checkpoint.CONFIG_FILE).read_text())
        config["about"] = {"task": name, **digests_of(name, trained, validated)}
        (folder / checkpoint.CONFIG_FILE).write_text(json.dumps(config))
        return folder

    return make


class Told:
    """A watcher that remembers, in their order, warnings and that sampling began."""

    def __init__(self):
        self.said = []

    def status(self, text):
        if text.startswith("warning: "):
            self.said.append(text)

    def start(self, *_):
        self.said.append("sampling")

    def completion(self, _):
        pass


@pytest.fixture
def told(config_of, tmp_path):
    """`told(**changes)`: what a run of few tokens said, its summary, and its run.json."""

    def run(**changes):
        settings = {"out": tmp_path / "run", "samples": 1, "max_new_tokens": 3, "limit": None, **changes}
        watcher = Told()
        summary = execute(config_of(**settings), watcher)
        return watcher.said, summary, json.loads((settings["out"] / "run.json").read_bytes())

    return run


def table(summary):
    return {what: (value, remark) for what, value, remark in rows(summary)}


# ---- how the thinker was trained


def test_an_untrained_thinker_is_said_before_sampling_in_run_json_and_in_the_table(told):
    said, summary, run = told(limit=1)
    assert [text for text in said[: said.index("sampling")] if "the thinker is untrained" in text]
    assert run["environment"]["thinker_trained_on"] is None
    assert table(summary)["thinker"][0] == "untrained"


def test_a_thinker_of_another_task_is_said_and_one_of_the_same_is_not(told, trained_on, questions_at, tmp_path):
    data = questions_at("own/test.jsonl", 0, 2)
    said, summary, run = told(data=data, thinker=trained_on("mine"), latent_paths=None)
    assert "was trained on mine, and these questions are of own" in said[0]
    assert run["environment"]["thinker_trained_on"] == "mine"
    assert table(summary)["thinker trained on"] == ("mine", "these questions are of own")
    said, summary, run = told(data=data, thinker=trained_on("own"), latent_paths=None, out=tmp_path / "same")
    assert said == ["sampling"]
    assert (run["environment"]["thinker_trained_on"], run["environment"]["task"]) == ("own", "own")
    assert not {"thinker", "thinker trained on", "questions trained on"} & set(table(summary))


def test_a_thinker_that_says_nothing_of_its_training_is_said(told, make_checkpoint):
    said, summary, run = told(limit=1, thinker=make_checkpoint(), latent_paths=None)
    assert "does not say what it was trained on" in said[0]
    assert run["environment"]["thinker_trained_on"] == "unknown"
    assert table(summary)["thinker"][0] == "not known"


def test_methods_without_a_thinker_say_nothing(told):
    said, _, run = told(limit=1, method="cot", latent_paths=None)
    assert said == ["sampling"]
    assert "thinker_trained_on" not in run["environment"]


def test_a_run_of_version_0_1_is_continued(told, tmp_path):
    """It has none of this in its run.json, nor the setting in its config."""
    _, _, run = told(limit=1)
    name = run["config_hash"]
    del run["config"]["overlap"]
    for key in ("task", "thinker_trained_on"):
        del run["environment"][key]
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    for overlap in ("warn", "refuse"):  # change no question, so no run
        _, summary, run = told(limit=2, overlap=overlap)
        assert summary["num_questions"] == 2
        assert run["config_hash"] == name


# ---- questions that were trained on


def test_trained_questions_are_said_whatever_their_ids(told, trained_on, questions_at):
    thinker = trained_on("own", sums(0, 2), sums(4, 5))
    said, summary, run = told(data=questions_at("own.jsonl", 0, 6), thinker=thinker, latent_paths=None)
    assert "was trained on 2 of the 6 questions (q0, q1): `--overlap drop` leaves them out" in said[0]
    assert "was validated on 1 of the 6 questions (q4)" in said[1]
    assert said[2] == "sampling"
    assert run["environment"]["overlap"] == {"trained": ["q0", "q1"], "validated": ["q4"], "left_out": False}
    assert table(summary)["questions trained on"] == ("2 of 6", "q0, q1")
    assert table(summary)["questions validated on"] == ("1 of 6", "q4")


def test_trained_questions_are_refused_on_request(told, trained_on, questions_at, tmp_path, config_of):
    asked = {"data": questions_at("own.jsonl", 0, 6), "thinker": trained_on("own", sums(0, 2), sums(4, 5))}
    match = r"trained or validated on 3 of the 6 questions \(q0, q1, q4\).*`--overlap drop`"
    with pytest.raises(UsageError, match=match):
        told(**asked, latent_paths=None, overlap="refuse")
    with pytest.raises(UsageError, match=match):
        preview(config_of(**asked, latent_paths=None, overlap="refuse", limit=None))
    assert not (tmp_path / "run").exists()


def test_trained_questions_are_left_out_on_request(told, trained_on, questions_at, lines_of, tmp_path):
    asked = {"data": questions_at("own.jsonl", 0, 6), "thinker": trained_on("own", sums(0, 2), sums(4, 5))}
    said, summary, run = told(**asked, latent_paths=None, overlap="drop", limit=4)
    assert "they are left out" in said[0]
    assert {key[0] for key in lines_of(tmp_path / "run")} == {"q2", "q3"}
    assert table(summary)["left out, trained on"] == ("2 of 4", "q0, q1")
    assert run["config"]["overlap"] == "drop"
    told(**asked, latent_paths=None, overlap="drop")  # more questions of the same run
    assert {key[0] for key in lines_of(tmp_path / "run")} == {"q2", "q3", "q5"}
    with pytest.raises(UsageError, match='`--overlap` is "drop" in'):
        told(**asked, latent_paths=None)
    with pytest.raises(UsageError, match=r"`--overlap drop` leaves no question.*on all 2"):
        told(**asked, latent_paths=None, overlap="drop", limit=2, out=tmp_path / "none")


def test_an_adapter_and_a_model_that_it_was_merged_into_are_asked_too(
    told, questions_at, make_adapter, tiny_model_folder, tmp_path
):
    data, adapter, merged = questions_at("own.jsonl", 0, 3), make_adapter(), tmp_path / "merged"
    shutil.copytree(tiny_model_folder, merged)
    for folder in (adapter, merged):
        about = {"task": "own", **digests_of("own", sums(1, 2), [])}
        (folder / "train.json").write_text(json.dumps(about))
    for number, method in enumerate(
        ({"method": "lora", "adapter": adapter}, {"method": "cot", "backbone": str(merged)})
    ):
        said, _, run = told(data=data, latent_paths=None, out=tmp_path / f"{number}", **method)
        assert "was trained on 1 of the 3 questions (q1)" in said[0]
        assert run["environment"]["overlap"]["trained"] == ["q1"]


def test_a_damaged_train_json_is_a_sentence(make_adapter):
    folder = make_adapter()
    for content in (b"{", b"[" * 100_000, b"[]", b"\xff"):
        (folder / "train.json").write_bytes(content)
        done = CliRunner().invoke(app, ["--method", "lora", "--adapter", str(folder), "--dry-run"])
        assert done.exit_code == 2
        assert f"{folder / 'train.json'}" in done.stderr
        assert isinstance(done.exception, SystemExit)


# ---- exemplars


def test_an_exemplar_is_none_of_the_split_by_its_text(questions_at):
    """Questions 0 to 3 are asked, also where `--limit` leaves them out; of the training questions, 2 to 6, two are not."""
    questions_at("data/test.jsonl", 0, 4, "t")
    data = questions_at("data/train.jsonl", 2, 7, "r").parent
    for limit in (None, 1):
        config = RunConfig(method="cot", data=data, shots=3, limit=limit).resolved()
        assert [one.id for one in parts_of(config, task_of(config)).exemplars] == ["r4", "r5", "r6"]
    config = RunConfig(method="cot", data=data, shots=4).resolved()
    with pytest.raises(UsageError, match="there are 3 that are not asked"):
        parts_of(config, task_of(config))
    config = RunConfig(method="cot", data=data, shots=2, split="train", limit=2).resolved()
    assert [one.id for one in parts_of(config, task_of(config)).exemplars] == ["r4", "r5"]


def test_a_run_with_other_exemplars_than_those_of_version_0_1_is_another_run(told, questions_at):
    questions_at("data/test.jsonl", 0, 2, "t")
    data = questions_at("data/train.jsonl", 1, 5, "r").parent
    asked = {"method": "cot", "latent_paths": None, "data": data}
    _, _, run = told(**asked, shots=2)
    assert run["config"]["exemplars"] == ["r2", "r3"]
    questions_at("data/train.jsonl", 2, 6, "r")
    with pytest.raises(UsageError, match="the solved questions of `--shots`"):
        told(**asked, shots=2)
