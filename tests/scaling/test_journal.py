"""The run directory: nothing lost by kill -9, nothing mixed between runs, nothing changed by a refusal."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.errors import InUse, UsageError
from scaling.journal import (
    EXTENDABLE,
    FREE,
    LOCK,
    QUESTIONS,
    RUN,
    SAMPLES,
    SUMMARY,
    Journal,
    config_hash,
    load,
    load_questions,
    load_thoughts,
    merge,
)
from scaling.records import Asked, Completion, Thoughts, to_json

CONFIG = {"method": "softcot", "temperature": 0.7, "seed": 1, "latent_paths": 2, "samples": 2, "limit": 3, "out": "a"}
ENVIRONMENT = {"torch": "2.9", "host": "a"}
ROOT = Path(__file__).parents[2]


def drawn(question_id: str, path: int = 0, sample: int = 0, text: str = "So 5.") -> Completion:
    return Completion(question_id, path, sample, text, "5", True, None, False, 7, "end", 123)


def opened(folder: Path, **changes: object) -> Journal:
    return Journal.open(folder, config=CONFIG | changes, environment=ENVIRONMENT)


def filled(folder: Path, *completions: Completion, **changes: object) -> Path:
    with opened(folder, **changes) as journal:
        for completion in completions:
            journal.append(completion)
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in folder.iterdir()}


def start(program: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(folder), json.dumps(CONFIG)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


# --- what is written ---


def test_the_run_is_on_disk_before_the_first_sample(tmp_path):
    with opened(tmp_path / "runs" / "new"):
        run = json.loads((tmp_path / "runs" / "new" / RUN).read_text())
    assert run == {"config": CONFIG, "config_hash": config_hash(CONFIG), "environment": ENVIRONMENT}


def test_a_completion_is_with_the_operating_system_when_append_returns(tmp_path):
    with opened(tmp_path) as journal:
        for i in range(3):
            journal.append(drawn(f"q{i}"))
            assert [c.question_id for c in load(tmp_path)[1]] == [f"q{j}" for j in range(i + 1)]


texts = st.text(st.characters(exclude_categories=()) | st.sampled_from("\n\r\0\x85\u2028\u2029\ud800\udc00"))


@settings(deadline=None)
@given(completions=st.lists(st.tuples(texts, st.none() | texts), max_size=5))
def test_any_text_comes_back_as_it_was(tmp_path_factory, completions):
    folder = tmp_path_factory.mktemp("run")
    written = [
        dataclasses.replace(drawn(f"q{i}", text=text), answer=answer) for i, (text, answer) in enumerate(completions)
    ]
    filled(folder, *written)
    with opened(folder) as journal:
        found = list(journal.completions.values())
    assert found == load(folder)[1]
    assert [(joined(c.text), joined(c.answer)) for c in written] == [(c.text, c.answer) for c in found]
    # Whatever a reader splits lines on, a completion is one line.
    assert len((folder / SAMPLES).read_bytes().decode("ascii").splitlines()) == len(written)


def joined(text: str | None) -> str | None:
    """Two halves of a surrogate pair, side by side, come back as the character they stand for; all else is kept."""
    return text and text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def test_a_key_is_written_once(tmp_path):
    with opened(tmp_path) as journal:
        journal.append(drawn("q"))
        with pytest.raises(ValueError, match=r"\('q', 0, 0\) is already in"):
            journal.append(drawn("q", text="another"))
    with opened(tmp_path) as journal, pytest.raises(ValueError, match="already"):
        journal.append(drawn("q"))
    assert load(tmp_path)[1] == [drawn("q")]


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    write = os.write
    with opened(tmp_path) as journal:
        journal.append(drawn("q0"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, line: write(fd, line[: len(line) // 2]))
            with pytest.raises(OSError, match=r"samples\.jsonl") as caught:
                journal.append(drawn("q1"))
        assert caught.value.errno == errno.ENOSPC
        journal.append(drawn("q1"))
    assert load(tmp_path)[1] == [drawn("q0"), drawn("q1")]


def test_the_summary_is_replaced_as_a_whole(tmp_path):
    with opened(tmp_path) as journal:
        assert journal.read_summary() is None
        for summary in ({"accuracy": 0.5, "long": "x" * 1000}, {"accuracy": None}):
            journal.write_summary(summary)
            assert journal.read_summary() == summary
        with pytest.raises(ValueError, match="JSON"):
            journal.write_summary({"accuracy": float("nan")})
        assert journal.read_summary() == {"accuracy": None}
    assert {entry.name for entry in tmp_path.iterdir()} == {LOCK, RUN, QUESTIONS, SAMPLES, SUMMARY}


def test_a_closed_journal_takes_nothing(tmp_path):
    journal = opened(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        journal.append(drawn("q"))


# --- killed and damaged ---

APPEND_FOREVER = """
import itertools, json, sys
from pathlib import Path
from scaling.journal import Journal
from scaling.records import Completion
journal = Journal.open(Path(sys.argv[1]), config=json.loads(sys.argv[2]), environment={})
for i in itertools.count():
    journal.append(Completion("q", 0, i, "x" * 5000, "5", True, None, False, 7, "end", i))
    print(i, flush=True)
"""


def test_kill_9_loses_nothing_that_was_appended(tmp_path):
    started = 0
    for _ in range(3):
        with start(APPEND_FOREVER.replace("count()", f"count({started})"), tmp_path) as process:
            for _ in range(20):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            said = process.stdout.read().split()
        with opened(tmp_path) as journal:
            samples = [sample for _, _, sample in journal.completions]
        assert samples == list(range(len(samples)))
        assert len(samples) >= started + 20 + len(said)
        started = len(samples)


def test_a_last_line_cut_at_any_byte_costs_that_line_alone(tmp_path):
    kept = [drawn("q0"), drawn("q1")]
    filled(tmp_path, *kept, drawn("q2", text="é\n"))
    whole = (tmp_path / SAMPLES).read_bytes()
    start_of_last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(start_of_last, len(whole)):
        (tmp_path / SAMPLES).write_bytes(whole[:end])
        assert load(tmp_path)[1] == kept
        assert (tmp_path / SAMPLES).stat().st_size == end  # load repairs nothing
        with opened(tmp_path) as journal:
            assert list(journal.completions.values()) == kept
            journal.append(drawn("q2", text="é\n"))
        assert (tmp_path / SAMPLES).read_bytes() == whole


@pytest.mark.parametrize("torn", [b"\0\0\0\0", b"{}\n", b"\n", b"[1]\n", b"\xff\n", b'{"question_id": ["a"]}\n'])
def test_an_unreadable_last_line_is_cut(tmp_path, torn):
    filled(tmp_path, drawn("q0"))
    whole = (tmp_path / SAMPLES).read_bytes()
    (tmp_path / SAMPLES).write_bytes(whole + torn)
    filled(tmp_path)
    assert (tmp_path / SAMPLES).read_bytes() == whole


@pytest.mark.parametrize("bad", ["", "{}", '{"question_id"', to_json(drawn("q0")) + to_json(drawn("q9"))])
def test_damage_in_the_middle_is_reported_and_left_alone(tmp_path, bad):
    filled(tmp_path, drawn("q0"))
    lines = [to_json(drawn("q0")), bad, to_json(drawn("q2")), '{"torn']
    (tmp_path / SAMPLES).write_text("\n".join(lines))
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"samples\.jsonl line 2 is no completion"):
        opened(tmp_path, latent_paths=9)
    with pytest.raises(UsageError, match="line 2"):
        load(tmp_path)
    assert contents(tmp_path) == before


def test_a_repeated_key_in_the_file_is_reported(tmp_path):
    filled(tmp_path, drawn("q0"), drawn("q1"))
    with (tmp_path / SAMPLES).open("a") as handle:
        handle.write(to_json(drawn("q0")) + "\n")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"samples\.jsonl line 3 repeats completion \('q0', 0, 0\)"):
        opened(tmp_path)
    assert contents(tmp_path) == before
    # The refusal has let go of the lock: once the line is gone, the run goes on.
    (tmp_path / SAMPLES).write_text(to_json(drawn("q0")) + "\n")
    filled(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_run_file_is_reported(tmp_path, text):
    filled(tmp_path)
    (tmp_path / RUN).write_text(text)
    for read in (opened, load):
        with pytest.raises(UsageError, match=r"run\.json is damaged or not written by a run"):
            read(tmp_path)


# --- one process, one config, one folder ---

HOLD = """
import json, sys
from pathlib import Path
from scaling.journal import Journal
with Journal.open(Path(sys.argv[1]), config=json.loads(sys.argv[2]), environment={}):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_while_the_first_runs(tmp_path):
    with start(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InUse, match="in use by another process; wait for it or choose another `--out`"):
            opened(tmp_path)
        assert load(tmp_path)[1] == []
        process.stdin.write("\n")
    with opened(tmp_path), pytest.raises(UsageError, match="in use"):
        opened(tmp_path)
    filled(tmp_path)


def test_every_differing_option_is_named_with_both_values(tmp_path):
    filled(tmp_path, drawn("q"))
    (tmp_path / LOCK).unlink()
    before = contents(tmp_path)
    with pytest.raises(UsageError) as caught:
        opened(tmp_path, temperature=1.0, seed=2, latent_paths=8, max_new_tokens=64)
    run = tmp_path / RUN
    assert str(caught.value) == (
        f"`--max-new-tokens` is not set in {run} and 64 now; `--seed` is 1 in {run} and 2 now; "
        f"`--temperature` is 0.7 in {run} and 1.0 now; choose another `--out` or give the same values"
    )
    assert contents(tmp_path) == before


@pytest.mark.parametrize("key", EXTENDABLE + FREE)
def test_other_options_may_differ_and_keep_what_is_there(tmp_path, key):
    filled(tmp_path, drawn("q", 1, 1))
    for value in (99, 1, None):
        with opened(tmp_path, **{key: value}) as journal:
            assert list(journal.completions) == [("q", 1, 1)]
        assert load(tmp_path)[0]["config"] == CONFIG | {key: value}
        assert load(tmp_path)[0]["config_hash"] == config_hash(CONFIG)


@given(st.permutations(sorted(CONFIG)), st.sampled_from(sorted(CONFIG)))
def test_the_hash_is_of_what_a_run_computes(order, changed):
    assert config_hash({key: CONFIG[key] for key in order}) == config_hash(CONFIG)
    same = config_hash(CONFIG | {changed: "other"}) == config_hash(CONFIG)
    assert same == (changed in EXTENDABLE + FREE)


@pytest.mark.parametrize(
    ("place", "content"),
    [
        *(("backbone", "backbone_fingerprint"), ("assistant", "assistant_fingerprint")),
        *(("thinker", "thinker_sha256"), ("adapter", "adapter_sha256")),
    ],
)
def test_what_a_run_was_made_with_may_move_and_must_not_change(tmp_path, place, content):
    filled(tmp_path, drawn("q"), **{place: "here", content: "abc"})
    with opened(tmp_path, **{place: "there", content: "abc"}) as journal:
        assert list(journal.completions) == [("q", 0, 0)]
    with pytest.raises(UsageError, match=f"`--{place}`"):
        opened(tmp_path, **{place: "there", content: "abd"})
    filled(tmp_path / "other", drawn("q"), **{place: "here"})
    with pytest.raises(UsageError, match=f'`--{place}` is "here"'):
        opened(tmp_path / "other", **{place: "there"})
    filled(tmp_path / "unread", drawn("q"), **{place: "here", content: "config-abc"})
    with pytest.raises(UsageError, match=f'`--{place}` is "here"'):  # all models of a kind have this one
        opened(tmp_path / "unread", **{place: "there", content: "config-abc"})


def test_an_option_that_is_not_set_is_no_other_run(tmp_path):
    folder = tmp_path / "run"
    filled(folder, drawn("q"))
    with Journal.open(folder, config=CONFIG | {"later": None}, environment=ENVIRONMENT):
        pass
    assert config_hash(CONFIG | {"later": None}) == config_hash(CONFIG) != config_hash(CONFIG | {"later": 0})
    with pytest.raises(UsageError, match=r"`--later` is not set in .* and 0 now"):
        Journal.open(folder, config=CONFIG | {"later": 0}, environment=ENVIRONMENT)


@pytest.mark.parametrize("torn", ["", '{"question_id'], ids=["empty", "torn"])
def test_a_run_that_drew_nothing_gives_way_to_other_settings(tmp_path, torn):
    """As one whose engine did not start: its error may ask for another setting. A line that is torn may be all of a run."""
    with opened(tmp_path) as journal:
        journal.write_summary({"seconds": 5.0})
        journal.record_thoughts(Thoughts("q", ((1.0,),)))
        with pytest.raises(UsageError, match="in use"):
            opened(tmp_path, seed=2)
    (tmp_path / SAMPLES).write_text(torn)
    if torn:
        with pytest.raises(UsageError, match="choose another `--out`"):
            opened(tmp_path, seed=2)
        return
    with opened(tmp_path) as journal:
        assert journal.read_summary(), "of the same run"
    with opened(tmp_path, seed=2) as journal:
        assert journal.read_summary() is None, "of the run before"
    assert (load(tmp_path)[0]["config"], load_thoughts(tmp_path)) == (CONFIG | {"seed": 2}, {})


def test_a_folder_of_foreign_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"not empty \(thesis\.tex\) and has no run\.json"):
        opened(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match=r"`--out` .*thesis\.tex cannot be created \(File exists\)"):
        opened(tmp_path / "thesis.tex")


def test_what_a_run_killed_at_its_start_leaves_is_not_foreign(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / (RUN + ".tmp")).write_text('{"conf')
    filled(tmp_path, drawn("q"))
    assert {entry.name for entry in tmp_path.iterdir()} == {LOCK, RUN, QUESTIONS, SAMPLES}


def test_only_a_run_directory_can_be_loaded(tmp_path):
    with pytest.raises(UsageError, match=r"is no run directory: it has no run\.json"):
        load(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- shards ---


def test_shards_are_merged_into_one_run(tmp_path):
    first = filled(tmp_path / "a", drawn("q0"), drawn("q1"), latent_paths=1, limit=2)
    second = filled(tmp_path / "b", drawn("q1"), drawn("q1", 4), latent_paths=5, limit=None, out="b")
    assert merge([first, second], tmp_path / "all") == 3
    run, completions = load(tmp_path / "all")
    assert completions == [drawn("q0"), drawn("q1"), drawn("q1", 4)]
    assert run["config"] == CONFIG | {"latent_paths": 5, "limit": None, "out": str(tmp_path / "all")}
    assert run["config_hash"] == config_hash(CONFIG)
    assert run["environment"] == ENVIRONMENT | {"shards": [ENVIRONMENT, ENVIRONMENT]}


def test_questions_are_kept_as_they_were_last_asked_and_merged_without_repeating_any(tmp_path):
    first, second = (Asked(name, "How many?", "5", ("x", "y"), "How\nmany\ud83d?", 3, 4, 2, 9) for name in ("q0", "q1"))
    for folder, questions in (("a", [second]), ("a", [first, second]), ("b", [second]), ("old", [])):
        with Journal.open(tmp_path / folder, config=CONFIG, environment={}, questions=questions):
            pass
    (tmp_path / "old" / "questions.jsonl").unlink()
    assert load_questions(tmp_path / "a") == [first, second]
    merge([tmp_path / "old", tmp_path / "b", tmp_path / "a"], tmp_path / "all")
    assert load_questions(tmp_path / "all") == [second, first]
    (tmp_path / "b" / "questions.jsonl").write_text('{"id": "q0"}\n')
    with pytest.raises(UsageError, match=r"questions\.jsonl is damaged"):
        load_questions(tmp_path / "b")


def test_thoughts_of_shards_are_merged(tmp_path):
    def shard(name: str, *thoughts: Thoughts) -> Path:
        with opened(tmp_path / name) as journal:
            for one in thoughts:
                journal.record_thoughts(one)
        return tmp_path / name

    first, again, other = (Thoughts(name, ((1.0, 0.5), (0.5, 1.0))) for name in ("q1", "q1", "q2"))
    merge([shard("a", first), shard("b", again, other)], tmp_path / "whole")
    assert list(load_thoughts(tmp_path / "whole").values()) == [first, other]
    assert len((tmp_path / "whole" / "thoughts.jsonl").read_text().splitlines()) == 2


def test_a_merged_environment_claims_only_what_all_shards_share(tmp_path):
    first = filled(tmp_path / "a")
    with Journal.open(tmp_path / "b", config=CONFIG, environment={"torch": "2.9", "host": "b"}):
        pass
    merge([first, tmp_path / "b"], tmp_path / "all")
    environment = load(tmp_path / "all")[0]["environment"]
    assert environment == {"torch": "2.9", "shards": [ENVIRONMENT, {"torch": "2.9", "host": "b"}]}


def test_shards_that_do_not_fit_leave_nothing_behind(tmp_path):
    first = filled(tmp_path / "a", drawn("q0"))
    conflicting = filled(tmp_path / "b", drawn("q0", text="So 6."))
    other = filled(tmp_path / "c", drawn("q0"), seed=2)
    with pytest.raises(UsageError, match=r"differ in completion \('q0', 0, 0\)"):
        merge([first, conflicting], tmp_path / "all")
    with pytest.raises(UsageError, match=r"`--seed` is 2 in .* and 1 in .*; merge only shards of one run"):
        merge([first, other], tmp_path / "all")
    with pytest.raises(UsageError, match="at least one run directory"):
        merge([], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    with pytest.raises(UsageError, match="already holds a run"):
        merge([first], other)
