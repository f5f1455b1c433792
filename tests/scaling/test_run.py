"""Runs from settings to journal: what is on disk, what changes a completion and what does not."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from itertools import count, cycle
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from scaling.display import RunProgress, rows
from scaling.models import loading
from scaling.prompts import PromptBuilder
from scaling.records.costs import RunCosts
from scaling.records.errors import Interrupted, UsageError
from scaling.records.journal import config_hash, load, load_questions, load_thoughts
from scaling.records.seeds import stream_seed
from scaling.run import execute, prepare
from scaling.sampler import Grid
from scaling.tasks.catalogue import load_task
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.task import PlainTask, Task

STANDARD = {"text", "seed", "answer", "correct", "num_tokens", "stop_reason"}


def test_the_files_and_fields_of_a_run(tmp_path, config_of, silent, generated, tiny_model_folder, lines_of):
    out = tmp_path / "run"
    summary = execute(config_of(out=out), silent)
    assert {path.name for path in out.iterdir()} - {".lock"} == {
        "run.json",
        "questions.jsonl",
        "samples.jsonl",
        "summary.json",
        "thoughts.jsonl",
    }
    assert json.loads((out / "summary.json").read_text()) == summary

    described = json.loads((out / "run.json").read_text())
    assert described["config_hash"] == config_hash(described["config"])
    assert described["config"]["seed"] == 0
    assert described["config"]["soft_tokens"] == 4
    assert described["config"]["task"] == "arithmetic"
    loaded = loading.load(str(tiny_model_folder), name="tiny", device="cpu", dtype=torch.float32)
    assert described["config"]["backbone_fingerprint"] == loaded.fingerprint
    assert described["environment"]["versions"]["torch"] == torch.__version__
    assert RunCosts.from_json(described["environment"]["costs"]) == prepare(config_of(), silent).method.costs()
    assert load_questions(out) == prepare(config_of(), silent).asked

    lines = lines_of(out)
    ids = [question.id for question in load_task("arithmetic", limit=2).questions]
    assert set(lines) == {(q, path, sample) for q in ids for path in range(2) for sample in range(2)}
    assert all(line.keys() >= STANDARD for line in lines.values())
    assert {key: len(result.tokens) for key, result in generated.items()} == {
        key: line["num_tokens"] for key, line in lines.items()
    }
    assert [c.key for c in silent.completions] == list(lines)

    assert summary.keys() >= {"accuracy_low", "accuracy_high", "accuracy_hierarchical", "pass_at_1", "coverage"}
    assert summary["seconds"] > 0
    assert 50_000_000 < summary["peak_memory_bytes"] < psutil.virtual_memory().total
    assert (summary["num_questions"], summary["num_completions"], summary["complete"]) == (2, 8, True)
    assert summary["tokens"]["generated"] == sum(line["num_tokens"] for line in lines.values())
    prompts = sum(len(result.request.prompt) for result in generated.values())
    assert summary["tokens"]["prefill_computed"] + summary["tokens"]["prefill_avoided"] == prompts
    assert 0 < summary["tokens"]["prefill_computed"] <= prompts
    assert summary["no_answer"] == sum(line["answer"] is None for line in lines.values()) / 8


def test_run_json_is_there_before_the_first_sample(tmp_path, config_of, silent, monkeypatch):
    def stop(*_):
        raise UsageError("here")

    monkeypatch.setattr("scaling.run.sample", lambda *_, **__: stop())
    with pytest.raises(UsageError, match="here"):
        execute(config_of(out=tmp_path / "run"), silent)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["method"] == "softcot++"
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == b""


def test_without_out_the_name_is_made_from_task_method_and_settings(tmp_path, config_of, silent, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"limit": 1, "samples": 1, "latent_paths": 1}
    first = execute(config_of(**small), silent)["run"]
    assert first == execute(config_of(**{**small, "limit": 2}), silent)["run"]  # an extension of the same run
    other = execute(config_of(**small, seed=1), silent)["run"]
    assert first != other
    for folder in (first, other):
        digest = json.loads((tmp_path / folder / "run.json").read_text())["config_hash"]
        assert folder == f"runs/arithmetic-softcot++-{digest}"


def test_the_batch_size_changes_no_completion(tmp_path, run):
    journals = {
        size: run(tmp_path / str(size), batch_size=size, limit=3, max_new_tokens=8) for size in (1, 3, 7, "auto")
    }
    assert len(journals[1]) == 12
    assert journals[3] == journals[1]
    assert journals[7] == journals[1]
    assert journals["auto"] == journals[1]


@pytest.mark.parametrize("more", [{"latent_paths": 3}, {"samples": 3}, {"limit": 3}])
@pytest.mark.parametrize("written_by", ["0.1", "this version"])
def test_raising_extends_without_computing_again(tmp_path, run, silent, config_of, more, written_by):
    run(tmp_path / "grown")
    if written_by == "0.1":  # whose lines have neither checksums nor costs nor the kind of answer
        for name in ("samples.jsonl", "questions.jsonl", "thoughts.jsonl"):
            lines = [json.loads(line) for line in (tmp_path / "grown" / name).read_text().splitlines()]
            old = [{k: v for k, v in line.items() if k not in ("crc", "cost", "kind")} for line in lines]
            (tmp_path / "grown" / name).write_text("".join(f"{json.dumps(line)}\n" for line in old))
        described = json.loads((tmp_path / "grown" / "run.json").read_text())
        del described["id"]
        (tmp_path / "grown" / "run.json").write_text(json.dumps(described))
    before = (tmp_path / "grown" / "samples.jsonl").read_bytes()
    execute(config_of(out=tmp_path / "grown", **more), silent)
    after = (tmp_path / "grown" / "samples.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(silent.completions) == 4  # 8 samples more than half again: 12 in all
    fresh = run(tmp_path / "fresh", **more)
    assert len(fresh) == 12
    assert {one.key: one for one in load(tmp_path / "grown")[1]} == {
        one.key: one for one in load(tmp_path / "fresh")[1]
    }


def test_thoughts_are_compared_once_a_question(tmp_path, config_of, silent, generated):
    execute(config_of(out=tmp_path / "run"), silent)
    found = load_thoughts(tmp_path / "run")
    paths = {
        (r.request.prompt.question_id, r.request.prompt.path): r.request.prompt.thoughts for r in generated.values()
    }
    assert list(found) == list(dict.fromkeys(question for question, _ in paths))
    for question, thoughts in found.items():
        one, other = (paths[question, path].flatten().double() for path in range(2))
        cosine = float(one @ other / one.norm() / other.norm())
        expected = ((1, cosine), (cosine, 1))
        assert torch.tensor(thoughts.cosines) == pytest.approx(torch.tensor(expected), abs=1e-4)
    before = (tmp_path / "run" / "thoughts.jsonl").read_bytes()
    execute(config_of(out=tmp_path / "run", samples=3), silent)  # the same thoughts again
    assert (tmp_path / "run" / "thoughts.jsonl").read_bytes() == before
    execute(config_of(out=tmp_path / "run", samples=3, latent_paths=3), silent)
    assert [len(thoughts.cosines) for thoughts in load_thoughts(tmp_path / "run").values()] == [3, 3]


def test_one_path_has_no_thoughts_to_compare(tmp_path, config_of, silent):
    execute(config_of(out=tmp_path / "run", latent_paths=1), silent)
    assert not (tmp_path / "run" / "thoughts.jsonl").exists()


def test_a_torn_line_of_thoughts_is_dropped(tmp_path, config_of, silent):
    execute(config_of(out=tmp_path / "run"), silent)
    path = tmp_path / "run" / "thoughts.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert len(load_thoughts(tmp_path / "run")) == 1
    execute(config_of(out=tmp_path / "run", samples=3), silent)
    assert path.read_bytes() == whole


def test_the_same_again_draws_nothing(tmp_path, run, config_of, silent):
    run(tmp_path / "run")
    before = (tmp_path / "run" / "samples.jsonl").read_bytes()
    summary = execute(config_of(out=tmp_path / "run"), silent)
    assert silent.completions == []
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == before
    assert summary["complete"] is True


def test_asking_again_for_a_finished_run_costs_nothing(tmp_path, run, config_of, silent):
    run(tmp_path / "run")
    before = json.loads((tmp_path / "run" / "summary.json").read_text())
    after = execute(config_of(out=tmp_path / "run"), silent)
    assert (after["seconds"], after["tokens"]) == (before["seconds"], before["tokens"])


def test_lowering_reports_the_smaller_grid_and_keeps_the_rest(tmp_path, run, config_of, silent):
    smaller = {"latent_paths": 1, "samples": 1, "limit": 1}
    run(tmp_path / "run")
    before = (tmp_path / "run" / "samples.jsonl").read_bytes()
    lowered = execute(config_of(out=tmp_path / "run", **smaller), silent)
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == before
    assert (lowered["num_questions"], lowered["num_completions"]) == (1, 1)
    assert lowered["accuracy_low"] is None  # one question gives no interval
    drawn = sum(json.loads(line)["num_tokens"] for line in before.splitlines())
    assert lowered["tokens"]["generated"] == drawn  # as are its seconds, of which a report takes the grid's share
    fresh = execute(config_of(out=tmp_path / "fresh", **smaller), silent)
    costs = {"tokens", "engine", "seconds", "peak_memory_bytes", "run"}
    assert {k: v for k, v in lowered.items() if k not in costs} == {k: v for k, v in fresh.items() if k not in costs}


def test_another_config_is_refused_by_its_keys(tmp_path, run, lines_of):
    old = run(tmp_path / "run")
    described = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UsageError) as refused:
        run(tmp_path / "run", seed=3, temperature=0.7, samples=4)
    message = str(refused.value)
    assert "`--seed` is 0 in" in message
    assert "and 3 now" in message
    assert "`--temperature` is 1.0 in" in message
    assert "and 0.7 now" in message
    assert "--samples" not in message
    assert (tmp_path / "run" / "run.json").read_bytes() == described
    assert lines_of(tmp_path / "run") == old


def test_changed_questions_under_the_same_name_are_refused(tmp_path, run):
    data = tmp_path / "mine.jsonl"
    data.write_text('{"id": "a", "question": "1 + 1?", "answer": 2}\n')
    run(tmp_path / "run", data=data)
    data.write_text('{"id": "a", "question": "1 + 2?", "answer": 3}\n')
    with pytest.raises(UsageError, match="text of a"):
        run(tmp_path / "run", data=data)


def written(path, **answers):
    """A file of questions that differ in their ids alone, with these gold answers."""
    rows = [{"id": name, "question": f"How many {name}?", "answer": answer} for name, answer in answers.items()]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def says(monkeypatch):
    """`says(*texts)`: what the tokenizer makes of every completion from here on, one after the other and over again."""

    def put(*texts):
        turn = cycle(texts)
        monkeypatch.setattr("scaling.reading.own_words", lambda *_: next(turn))

    return put


@pytest.mark.parametrize("changed", ["a", "b"], ids=["the first question", "a later question"])
@pytest.mark.parametrize("named", [True, False], ids=["--out", "the usual folder"])
def test_a_corrected_gold_answer_is_judged_by_and_nothing_is_drawn(
    tmp_path, config_of, silent, lines_of, says, monkeypatch, changed, named
):
    monkeypatch.chdir(tmp_path)
    says("The answer is 5.")
    said = []
    silent.status = said.append
    options = {"data": written(tmp_path / "mine.jsonl", a=5, b=5), "out": tmp_path / "run" if named else None}
    first = execute(config_of(**options), silent)
    assert (first["accuracy"], len(silent.completions)) == (1.0, 8)
    del silent.completions[:], said[:]
    written(tmp_path / "mine.jsonl", **{"a": 5, "b": 5, changed: 6})
    again = execute(config_of(**options), silent)
    assert silent.completions == []
    assert (again["run"], again["accuracy"]) == (first["run"], 0.5)
    lines = lines_of(Path(first["run"]))
    assert {key[0] for key, line in lines.items() if line["correct"]} == {"a", "b"} - {changed}
    told = "the gold answers of 1 question have changed: 4 completions judged anew, 4 verdicts changed"
    assert [line for line in said if "gold" in line] == [told]
    grown = execute(config_of(**options, samples=3), silent)
    assert (grown["run"], len(silent.completions), grown["pass_at_1"]) == (first["run"], 4, 0.5)


def test_a_completion_on_which_the_reader_fails_is_kept_and_the_run_goes_on(
    tmp_path, config_of, silent, lines_of, monkeypatch
):
    equal = AnswerChecker.equal
    calls = count()

    def fails(*given, **kind):
        return 1 / 0 if next(calls) == 3 else equal(*given, **kind)

    monkeypatch.setattr(Task, "read", lambda *_: "7")
    monkeypatch.setattr(AnswerChecker, "equal", fails)
    summary = execute(config_of(out=tmp_path / "run", batch_size=1), silent)
    (unread,) = [one for one in silent.completions if one.unread]
    line = lines_of(tmp_path / "run")[unread.key]
    assert line["unread"] == unread.unread == "ZeroDivisionError: division by zero"
    assert (line["answer"], line["correct"], line["answer_strict"], line["correct_strict"]) == (
        None,
        False,
        None,
        False,
    )
    assert line["text"]
    assert (summary["complete"], summary["num_completions"], summary["unread"]) == (True, 8, 1)
    assert ("texts not readable", "1") in [row[:2] for row in rows(summary)]
    said = io.StringIO()
    watch = RunProgress(Console(file=said, width=300), voter="flat")
    watch.start(Grid([], 1, 1, 0), {}, tmp_path)
    watch.completion(unread)
    where = f"question {unread.question_id}, path {unread.path}, sample {unread.sample} could not be read"
    assert f"{where} and has no answer ({unread.unread})" in said.getvalue()
    del silent.completions[:]
    assert execute(config_of(out=tmp_path / "run", batch_size=1), silent)["unread"] == 1
    assert silent.completions == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError("no process can be started"), OSError("no room")])
def test_what_is_not_the_texts_fault_is_not_put_down_to_it(tmp_path, config_of, silent, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(Task, "read", lambda *_: "7")
    monkeypatch.setattr(AnswerChecker, "equal", fails)
    kind = Interrupted if error is KeyboardInterrupt else type(error)
    with pytest.raises(kind):
        execute(config_of(out=tmp_path / "run"), silent)
    assert silent.completions == []


def test_comparisons_that_time_out_are_counted_in_all_sessions(tmp_path, config_of, silent, monkeypatch):
    def slow(self, *_, **__):
        self.timeouts += 1
        return False

    monkeypatch.setattr(Task, "read", lambda *_: "7")
    monkeypatch.setattr(AnswerChecker, "equal", slow)
    summary = execute(config_of(out=tmp_path / "run", samples=1), silent)
    assert summary["timeouts"] == 2 * len(silent.completions) == 8
    assert ("comparisons timed out", "8") in [row[:2] for row in rows(summary)]
    (tmp_path / "run" / "summary.json").unlink()  # as after kill -9
    assert execute(config_of(out=tmp_path / "run"), silent)["timeouts"] == 16


class Killed(BaseException):
    """As kill -9: nothing is written any more."""


@pytest.mark.parametrize("after", [1, 6])
def test_what_a_killed_run_has_cost_is_known_to_the_next_session(tmp_path, config_of, silent, after):
    """One completion at a time, and the next one is begun when the last is written: nothing else is in flight."""
    whole = execute(config_of(out=tmp_path / "whole", batch_size=1), silent)

    class Kills(type(silent)):
        def completion(self, completion):
            super().completion(completion)
            if len(self.completions) == after:
                raise Killed

    with pytest.raises(Killed):
        execute(config_of(out=tmp_path / "run", batch_size=1), Kills())
    assert not (tmp_path / "run" / "summary.json").exists()
    told = [json.loads(line).get("cost", {}) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    seconds = sum(cost.get("seconds", 0) for cost in told)
    assert seconds > 0
    resumed = execute(config_of(out=tmp_path / "run", batch_size=1), silent)
    assert resumed["seconds"] > seconds

    def prompts(summary):
        return summary["tokens"]["prefill_computed"] + summary["tokens"]["prefill_avoided"]

    assert prompts(resumed) == prompts(whole)
    for key in ("decode_steps", "decoded_rows", "row_capacity"):
        assert resumed["engine"][key] == whole["engine"][key]
    assert execute(config_of(out=tmp_path / "run"), silent)["seconds"] == resumed["seconds"]


def test_softcot_is_the_first_path_of_softcot_plus_plus(tmp_path, run):
    several = run(tmp_path / "several", latent_paths=3)
    one = run(tmp_path / "one", method="softcot", latent_paths=1)
    assert one == {key: line for key, line in several.items() if key[1] == 0}
    assert len(one) == 4


def test_cot_at_temperature_0_is_the_models_own_greedy_search(tmp_path, run, generated, tiny_model_folder):
    lines = run(tmp_path / "run", method="cot", temperature=0.0, samples=1, latent_paths=None, limit=4)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    tokenizer = loading.load_tokenizer(str(tiny_model_folder), name="tiny")
    builder = PromptBuilder(tokenizer, task=PlainTask("number"))
    for question in load_task("arithmetic", limit=4).questions:
        ids = torch.tensor([builder.backbone(question, num_slots=0).prefix])
        found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        expected = found[0, ids.shape[1] :].tolist()
        assert generated[question.id, 0, 0].tokens == expected
        line = lines[question.id, 0, 0]
        assert line["num_tokens"] == len(expected)
        assert line["text"] == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_every_completion_has_a_stream_of_its_own(tmp_path, run):
    lines = run(tmp_path / "run", latent_paths=3, samples=3, max_new_tokens=2, seed=5)
    assert {key: line["seed"] for key, line in lines.items()} == {key: stream_seed(5, *key) for key in lines}
    assert len({line["seed"] for line in lines.values()}) == len(lines) == 18


def test_samples_of_a_path_and_paths_of_a_question_differ(tmp_path, run):
    lines = run(tmp_path / "run", limit=1, latent_paths=3, samples=3)
    assert len({line["text"] for line in lines.values()}) == 9


def test_paths_differ_in_their_thoughts_and_in_nothing_else(config_of, silent):
    setup = prepare(config_of(latent_paths=3), silent)
    prompts = setup.method.prompts(setup.task.questions[0], [0, 1, 2])
    assert [prompt.path for prompt in prompts] == [0, 1, 2]
    assert len({prompt.prefix for prompt in prompts}) == len({prompt.suffix for prompt in prompts}) == 1
    for left, right in [(0, 1), (0, 2), (1, 2)]:
        assert not torch.allclose(prompts[left].thoughts, prompts[right].thoughts, atol=1e-3)
    other = setup.method.prompts(setup.task.questions[1], [0])[0]
    assert not torch.allclose(prompts[0].thoughts, other.thoughts, atol=1e-3)
    asked = setup.asked[0]
    assert (len(prompts[0]), len(prompts[0].prefix)) == (asked.prompt_tokens, asked.prefix_tokens)


def test_the_models_generation_config_is_ignored(tmp_path, run, tiny_model_folder):
    folder = tmp_path / "opinionated"
    shutil.copytree(tiny_model_folder, folder)
    file = folder / "generation_config.json"
    opinions = {"do_sample": True, "top_k": 1, "top_p": 0.1, "temperature": 0.1, "repetition_penalty": 5.0}
    file.write_text(json.dumps({**json.loads(file.read_text()), **opinions}))
    assert run(tmp_path / "with", backbone=str(folder)) == run(tmp_path / "without")


def test_top_k_of_one_is_greedy(tmp_path, run):
    """So the option reaches the sampler: all samples of a path are the temperature-0 one."""
    greedy = run(tmp_path / "greedy", temperature=0.0, samples=1)
    for name, changes in (("k", {"top_k": 1}), ("p", {"top_p": 1e-6})):
        drawn = run(tmp_path / name, **changes)
        assert {key: line["text"] for key, line in drawn.items()} == {
            (q, path, sample): greedy[q, path, 0]["text"] for q, path, sample in drawn
        }


def test_a_run_names_its_checkpoint_by_content(tmp_path, run, make_checkpoint):
    folder = make_checkpoint()
    run(tmp_path / "run", thinker=folder)
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    digest = hashlib.sha256((folder / "thinker.safetensors").read_bytes()).hexdigest()
    assert config["thinker_sha256"] == digest
    assert config["soft_tokens"] == 3  # the checkpoint's
