"""The run directory: nothing lost by kill -9, nothing mixed between runs, nothing changed by a refusal."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.records.errors import InUse, UsageError
from scaling.records.journal import (
    ID,
    LOCK,
    QUESTIONS,
    RUN,
    SAMPLES,
    SUMMARY,
    Journal,
    config_hash,
    load,
    load_questions,
    load_run,
    load_thoughts,
    merge,
)
from scaling.records.json_lines import start_of
from scaling.records.records import Completion, PathCosines, PromptedQuestion, to_json
from scaling.records.seeds import stream_seed
from scaling.records.settings import Effect, run_names

CONFIG = {"method": "softcot", "temperature": 0.7, "seed": 1, "latent_paths": 2, "samples": 2, "limit": 3, "out": "a"}
ENVIRONMENT = {"torch": "2.9", "host": "a"}
ROOT = Path(__file__).parents[2]
MAY_CHANGE = run_names(Effect.SIZE, Effect.FREE)


def drawn(question_id: str, path: int = 0, sample: int = 0, text: str = "So 5.") -> Completion:
    seed = stream_seed(CONFIG["seed"], question_id, path, sample)
    return Completion(question_id, path, sample, text, "5", True, None, False, 7, "end", seed)


def opened(folder: Path, **changes: object) -> Journal:
    return Journal.open(folder, config=CONFIG | changes, environment=ENVIRONMENT)


def filled(folder: Path, *completions: Completion, **changes: object) -> Path:
    with opened(folder, **changes) as journal:
        for completion in completions:
            journal.append(completion)
    return folder


def line_of(completion: Completion) -> str:
    """As a run of CONFIG writes it."""
    return to_json(completion, start=start_of(config_hash(CONFIG)))


def without_id(folder: Path) -> Path:
    """The run as one that began before runs had ids, with no lines."""
    run = load_run(filled(folder))
    (folder / RUN).write_text(json.dumps({key: value for key, value in run.items() if key != ID}))
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
    name = config_hash(CONFIG)
    assert run == {"config": CONFIG, "config_hash": name, "environment": ENVIRONMENT, "id": name}


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
        dataclasses.replace(drawn(f"q{i}", text=text), answer=answer, correct=answer is not None)
        for i, (text, answer) in enumerate(completions)
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
from scaling.records.journal import Journal
from scaling.records.records import Completion
from scaling.records.seeds import stream_seed
from scaling.records.settings import Effect, run_names
journal = Journal.open(Path(sys.argv[1]), config=json.loads(sys.argv[2]), environment={})
for i in itertools.count():
    journal.append(Completion("q", 0, i, "x" * 5000, "5", True, None, False, 7, "end", stream_seed(1, "q", 0, i)))
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


@pytest.mark.parametrize("torn", [b"\0\0\0\0", b"\n", b"[1]\n", b"\xff\n", b'{"question_id": ["a"]}', b"[" * 9000])
def test_an_unreadable_last_line_is_cut(tmp_path, torn):
    filled(tmp_path, drawn("q0"))
    whole = (tmp_path / SAMPLES).read_bytes()
    (tmp_path / SAMPLES).write_bytes(whole + torn)
    filled(tmp_path)
    assert (tmp_path / SAMPLES).read_bytes() == whole


@pytest.mark.parametrize("bad", ["", "{}", '{"question_id"', line_of(drawn("q0")) + line_of(drawn("q9"))])
def test_damage_in_the_middle_is_reported_and_left_alone(tmp_path, bad):
    filled(tmp_path, drawn("q0"))
    lines = [line_of(drawn("q0")), bad, line_of(drawn("q2")), '{"torn']
    (tmp_path / SAMPLES).write_text("\n".join(lines))
    before = contents(tmp_path)
    with pytest.raises(
        UsageError, match=r"samples\.jsonl line 2 is (no completion|of another run: it has no checksum)"
    ):
        opened(tmp_path, latent_paths=9)
    with pytest.raises(UsageError, match="line 2"):
        load(tmp_path)
    assert contents(tmp_path) == before


def test_a_repeated_key_in_the_file_is_reported(tmp_path):
    filled(tmp_path, drawn("q0"), drawn("q1"))
    with (tmp_path / SAMPLES).open("a") as handle:
        handle.write(line_of(drawn("q0")) + "\n")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"samples\.jsonl line 3 repeats completion \('q0', 0, 0\)"):
        opened(tmp_path)
    assert contents(tmp_path) == before
    # The refusal has let go of the lock: once the line is gone, the run goes on.
    (tmp_path / SAMPLES).write_text(line_of(drawn("q0")) + "\n")
    filled(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_run_file_is_reported(tmp_path, text):
    filled(tmp_path)
    (tmp_path / RUN).write_text(text)
    for read in (opened, load):
        with pytest.raises(UsageError, match=r"run\.json is damaged or not written by a run"):
            read(tmp_path)


@settings(deadline=None, max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found_and_its_line_named(tmp_path_factory, place, bit):
    folder = filled(tmp_path_factory.mktemp("run"), drawn("q0"), drawn("q1"), drawn("q2"))
    whole = (folder / SAMPLES).read_bytes()
    at = int(place * len(whole))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << bit
    (folder / SAMPLES).write_bytes(flipped)
    number = whole[:at].count(b"\n") + 1
    if number == 3:  # where it is no longer a line it is cut and drawn again
        with suppress(UsageError):
            assert load(folder)[1] == [drawn("q0"), drawn("q1")]
        return
    with pytest.raises(UsageError, match=rf"samples\.jsonl line {number} "):
        load(folder)


def old_line(completion: Completion, **changes: object) -> str:
    """As version 0.1 wrote it, without a checksum."""
    return json.dumps({**dataclasses.asdict(completion), "unread": None, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_tokens": -33}, "num_tokens is -33"),
        ({"answer": [5]}, r"answer is \[5\]"),
        ({"correct": "false"}, 'correct is "false"'),
        ({"path": -1}, "path is -1"),
        ({"sample": 0.5}, "sample is 0.5"),
        ({"stop_reason": "tired"}, 'stop_reason is "tired"'),
        ({"extra": 1}, "extra is no field of it"),
        ({"answer": None}, "judged correct and has no answer"),
        ({"seed": 5}, "is of another run: completion .* has the stream .*, and this one 5;"),
        ({"cost": {"seconds": -1}}, "its cost is not made of numbers"),
    ],
)
def test_a_line_that_no_run_writes_is_refused_wherever_it_stands(tmp_path, changes, said):
    without_id(tmp_path)
    for lines in ([old_line(drawn("q1"), **changes), old_line(drawn("q2"))], [old_line(drawn("q1"), **changes)]):
        (tmp_path / SAMPLES).write_text("".join(f"{line}\n" for line in [to_json(drawn("q0")), *lines]))
        before = contents(tmp_path)
        for read in (opened, load):
            with pytest.raises(UsageError, match=rf"line 2 .*{said}.*restore the file or choose another `--out`"):
                read(tmp_path)
        assert contents(tmp_path) == before


def test_lines_of_version_0_1_have_no_checksum_and_count(tmp_path):
    without_id(tmp_path)
    (tmp_path / SAMPLES).write_text(f"{old_line(drawn('q0'))}\n{to_json(drawn('q1'))}\n")
    assert load(tmp_path)[1] == [drawn("q0"), drawn("q1")]


@pytest.mark.parametrize("changes", [{"backbone": "other"}, {"temperature": 0.9}, {"first_question": "other"}])
@pytest.mark.parametrize("place", [0, 1])
def test_a_line_of_another_run_is_refused_though_its_stream_is_the_same(tmp_path, changes, place):
    """Streams follow from the seed and the key alone, so that they do not tell one model's answers from another's."""
    own = filled(tmp_path / "own", drawn("q0"), drawn("q1"))
    foreign = filled(tmp_path / "foreign", drawn("q0"), drawn("q1"), **changes)
    lines = (own / SAMPLES).read_text().splitlines(True)
    lines[place] = (foreign / SAMPLES).read_text().splitlines(True)[place]
    (own / SAMPLES).write_text("".join(lines))
    before = contents(own)
    for read in (opened, load, lambda folder: merge([folder], tmp_path / "all")):
        with pytest.raises(UsageError, match=rf"samples\.jsonl line {place + 1} is of another run"):
            read(own)
    assert contents(own) == before


@pytest.mark.parametrize("line", [to_json(drawn("q0")), json.dumps(dataclasses.asdict(drawn("q0")))])
def test_a_line_of_a_run_without_an_id_is_none_of_a_run_that_has_one(tmp_path, line):
    filled(tmp_path, drawn("q1"))
    (tmp_path / SAMPLES).write_text(f"{line}\n")
    with pytest.raises(UsageError, match="line 1 is of another run"):
        load(tmp_path)


def test_a_run_keeps_its_id_however_it_goes_on(tmp_path):
    """Though it is extended, its questions are judged anew, and what it says of its task is another thing."""
    place = {"task": "here.py:task", "task_sha256": "a"}
    filled(tmp_path / "run", drawn("q0"), **place)
    begun = load_run(tmp_path / "run")[ID]
    moved = place | {"task": "there.py:task", "samples": 4}
    with opened(tmp_path / "run", **moved) as journal:
        journal.rejudge({drawn("q0").key: dataclasses.replace(drawn("q0"), correct=False)}, {})
        journal.restate(CONFIG | moved | {"task_sha256": "b"}, ENVIRONMENT)
        journal.append(drawn("q1"))
    with opened(tmp_path / "run", **moved | {"task_sha256": "b"}) as journal:
        journal.append(drawn("q2"))
    run, completions = load(tmp_path / "run")
    assert (run[ID], len(completions)) == (begun, 3)
    assert run["config_hash"] != begun
    merge([tmp_path / "run"], tmp_path / "all")
    assert load(tmp_path / "all")[1] == completions


def test_a_run_without_an_id_goes_on_without_one(tmp_path):
    (without_id(tmp_path) / SAMPLES).write_text(f"{to_json(drawn('q0'))}\n")
    filled(tmp_path, drawn("q1"))
    assert ID not in load_run(tmp_path)
    assert (tmp_path / SAMPLES).read_text() == "".join(f"{to_json(drawn(name))}\n" for name in ("q0", "q1"))
    merge([tmp_path], tmp_path / "all")
    assert load(tmp_path / "all")[1] == [drawn("q0"), drawn("q1")]


DAMAGED = [
    *(("samples", value) for value in (0, -1, "x", None, [], 1.5, True, 1e308, {}, "1")),
    *(("latent_paths", value) for value in (0, -1, "x", [], 1.5, True)),
    *(("seed", value) for value in ("x", None, 0.5)),
    *(("temperature", value) for value in ("a", -1, None, True)),
    *(("backbone", []), ("method", 5), ("task", []), ("data", 5), ("thinker", []), ("engine", "x"), ("adaptive", 99)),
]


@pytest.mark.parametrize(("key", "value"), DAMAGED)
def test_a_setting_that_no_run_has_is_named(tmp_path, key, value):
    filled(tmp_path, drawn("q0"))
    run = json.loads((tmp_path / RUN).read_text())
    (tmp_path / RUN).write_text(json.dumps({**run, "config": {**run["config"], key: value}}))
    before = contents(tmp_path)
    for read in (opened, load):
        with pytest.raises(
            UsageError, match=rf"run\.json is damaged: {key} is {re.escape(json.dumps(value))}; restore it"
        ):
            read(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"overlap": {"trained": None, "validated": [], "left_out": False}}, "overlap.trained is null"),
        ({"overlap": {"trained": [], "validated": "x", "left_out": False}}, 'overlap.validated is "x"'),
        ({"overlap": {"trained": [], "validated": [], "left_out": 3}}, "overlap.left_out is 3"),
        ({"overlap": [1]}, r"overlap is \[1\]"),
        ({"overlap": {}}, "overlap.trained is null"),
        ({"costs": {"backbone": 5}}, "costs is "),
        ({"shards": 5}, "shards is 5"),
        ({"shards": [{}, {"costs": 1}]}, r"shards\[1\].costs is 1"),
    ],
)
def test_an_environment_that_no_run_has_is_named(tmp_path, environment, name):
    filled(tmp_path, drawn("q0"))
    run = json.loads((tmp_path / RUN).read_text())
    (tmp_path / RUN).write_text(json.dumps({**run, "environment": environment}))
    for read in (opened, load):
        with pytest.raises(UsageError, match=rf"run\.json is damaged: environment\.{name}"):
            read(tmp_path)


def test_what_cannot_be_looked_up_is_no_damage(tmp_path):
    gone = {"method": "gone.py:Mine", "task": "gone.yaml", "voter": "nobody-has-it", "data": "gone.jsonl"}
    filled(tmp_path, drawn("q0"), **gone)
    assert load(tmp_path)[0]["config"] == CONFIG | gone


@pytest.mark.parametrize("name", [SAMPLES, "thoughts.jsonl"])
@pytest.mark.parametrize("lines", [1, 3])
def test_other_line_ends_are_damage_and_not_one_torn_line(tmp_path, name, lines):
    with opened(tmp_path) as journal:
        for i in range(lines):
            journal.append(drawn(f"q{i}"))
            journal.record_thoughts(PathCosines(f"q{i}", ((1.0,),)))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole.replace(b"\n", b"\r"))
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=f"{name} line 1 has other line ends than it was written with"):
        opened(tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / name).write_bytes(whole.replace(b"\n", b"\r\n"))  # which change nothing that is read
    with opened(tmp_path) as journal:
        assert len(journal.completions) == len(load_thoughts(tmp_path)) == lines


def test_two_last_lines_without_a_line_end_between_them_are_not_one_torn_line(tmp_path):
    filled(tmp_path, drawn("q0"))
    whole = (tmp_path / SAMPLES).read_bytes()
    for end in (b"", b"\n"):
        (tmp_path / SAMPLES).write_bytes(whole + line_of(drawn("q1")).encode() + line_of(drawn("q2")).encode() + end)
        with pytest.raises(UsageError, match="line 2 is no completion"):
            opened(tmp_path)


@pytest.mark.parametrize("damage", ['{"quest', "", "{}", '{"question_id": "q1", "cosines": [["a"]]}'])
def test_a_damaged_middle_line_of_thoughts_is_reported_and_left_alone(tmp_path, damage):
    with opened(tmp_path) as journal:
        for i in range(3):
            journal.record_thoughts(PathCosines(f"q{i}", ((1.0, 0.5), (0.5, 1.0))))
    lines = (tmp_path / "thoughts.jsonl").read_text().splitlines()
    lines[1] = damage
    (tmp_path / "thoughts.jsonl").write_text("\n".join([*lines, ""]))
    before = contents(tmp_path)
    for read in (opened, load_thoughts):
        with pytest.raises(UsageError, match=r"thoughts\.jsonl line 2 is no comparison of thoughts"):
            read(tmp_path)
    assert contents(tmp_path) == before


# --- questions that change ---


def asked(name: str, **changes: object) -> PromptedQuestion:
    return dataclasses.replace(
        PromptedQuestion(name, f"How many {name}?", "5", (), f"Say {name}.", 3, 0, 0, 0), **changes
    )


def asking(folder: Path, *questions: PromptedQuestion) -> Journal:
    return Journal.open(folder, config=CONFIG, environment={}, questions=questions)


@pytest.fixture
def answered(tmp_path) -> Path:
    """A run with completions of q0 and q1, and none of q2."""
    with asking(tmp_path, asked("q0"), asked("q1"), asked("q2")) as journal:
        for name in ("q0", "q1"):
            journal.append(drawn(name))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"text": "How few?"}, "text"),
        ({"choices": ("x", "y")}, "choices"),
        ({"prompt": "Say it."}, "prompt"),
        ({"text": "How few?", "answer": "3"}, "text"),
    ],
)
def test_a_question_that_reads_otherwise_than_when_it_was_answered_is_refused(answered, changes, what):
    before = contents(answered)
    with pytest.raises(UsageError, match=rf"\({what} of q1\).*restore the questions or choose another `--out`"):
        asking(answered, asked("q0"), asked("q1", **changes), asked("q2"))
    assert contents(answered) == before
    with asking(answered, asked("q1"), asked("q2", **changes), asked("q3")) as journal:  # which nothing was drawn of
        assert len(journal.completions) == 2
    assert [one.id for one in load_questions(answered)] == ["q1", "q2", "q3"]


def test_a_question_that_was_left_out_for_a_while_must_come_back_as_it_was(answered):
    with asking(answered, asked("q0")):
        pass
    assert load_questions(answered) == [asked("q0")]
    with pytest.raises(UsageError, match=r"text of q1"):
        asking(answered, asked("q0"), asked("q1", text="How few?"))
    with asking(answered, asked("q0"), asked("q1")):
        assert load_questions(answered) == [asked("q0"), asked("q1")]


def test_a_changed_kind_of_answer_is_told_where_it_is_known(answered):
    with asking(answered, asked("q0", kind="number")):  # version 0.1 did not say
        pass
    with pytest.raises(UsageError, match="kind of q0"):
        asking(answered, asked("q0", kind="yes_no"))


@pytest.mark.parametrize("killed", [None, "before", "samples.jsonl", "questions.jsonl"])
@pytest.mark.parametrize("then", ["5", "7"], ids=["changed back", "again"])
def test_a_changed_gold_answer_is_settled_whenever_judging_is_killed(answered, monkeypatch, killed, then):
    """The verdicts in the file are those of the gold answer beside it, or the next open says that they are not."""

    class Killed(BaseException):
        pass

    def judge(journal: Journal) -> None:
        held = [one for one in journal.completions.values() if one.question_id in {q.id for q in journal.restated}]
        gold = {q.id: q.answer for q in journal.restated}
        journal.rejudge({c.key: dataclasses.replace(c, correct=c.answer == gold[c.question_id]) for c in held}, {})

    replaced = os.replace

    def replace(source: Path, target: Path) -> None:
        replaced(source, target)
        if target.name == killed:
            raise Killed

    def reopened(gold: str) -> list[bool]:
        with asking(answered, asked("q0"), asked("q1", answer=gold)) as journal:
            if journal.restated:
                assert [one.id for one in journal.restated] == ["q1"]
                judge(journal)
            assert load_questions(answered)[1].answer == gold
            return [one.correct for one in journal.completions.values()]

    if killed is None:
        assert reopened("7") == [True, False]
    else:
        journal = asking(answered, asked("q0"), asked("q1", answer="7"))
        with pytest.raises(UsageError, match=r"not judged yet by the new gold answers of q1.*--rescore"):
            load_questions(answered)
        if killed != "before":
            monkeypatch.setattr(os, "replace", replace)
            with pytest.raises(Killed):
                judge(journal)
            monkeypatch.undo()
        journal.close()
    assert reopened(then) == [True, then == "5"]
    assert load(answered)[1] == [drawn("q0"), dataclasses.replace(drawn("q1"), correct=then == "5")]


def test_a_question_that_stands_there_twice_is_refused(answered):
    path = answered / QUESTIONS
    path.write_text(path.read_text() + path.read_text().splitlines(True)[1])
    for read in (load_questions, lambda folder: asking(folder, asked("q0"))):
        with pytest.raises(UsageError, match=r"questions\.jsonl line 4 repeats question 'q1'"):
            read(answered)


def test_the_digest_of_the_first_question_counts_only_where_no_question_can_be_compared(answered):
    def first(digest: str, *questions: PromptedQuestion) -> Journal:
        return Journal.open(answered, config=CONFIG | {"first_question": digest}, environment={}, questions=questions)

    first("a", asked("q0"), asked("q1")).close()
    first("b", asked("q1"), asked("q0", answer="7")).close()
    with pytest.raises(UsageError, match=r'the first question of the data .* is "b" in .* and "c" now'):
        first("c", asked("x0"), asked("x1"))


# --- what it cost ---


def test_costs_stand_in_the_lines_and_survive_kill_9(tmp_path):
    """Each line tells what was added since the one before; peaks are the largest."""
    so_far = [
        {"seconds": 1.25, "decode_steps": 3, "kv_bytes_held": 100, "prefill_computed": 40},
        {"seconds": 1.25, "decode_steps": 3, "kv_bytes_held": 100, "prefill_computed": 40},
        {"seconds": 4.0, "decode_steps": 9, "kv_bytes_held": 70, "prefill_computed": 40},
        {"seconds": 4.5, "decode_steps": 10, "kv_bytes_held": 130, "prefill_computed": 90},
    ]
    with opened(tmp_path) as journal:
        for i, costs in enumerate(so_far):
            journal.append(drawn(f"q{i}"), costs)
        last = journal.costs_so_far()
    told = [json.loads(line).get("cost") for line in (tmp_path / SAMPLES).read_text().splitlines()]
    assert told == [
        so_far[0],
        None,
        {"seconds": 2.75, "decode_steps": 6},
        {"seconds": 0.5, "decode_steps": 1, "kv_bytes_held": 130, "prefill_computed": 50},
    ]
    with opened(tmp_path) as journal:  # nothing but the lines is left
        assert journal.costs_so_far() == last == so_far[-1]


def test_seconds_are_rounded_down_in_each_line_and_not_in_their_sum(tmp_path):
    """Rounded up, a finished run that is asked for again would have cost more than its summary says."""
    steps = [0.0004 * (i % 7) + 0.0007 for i in range(100)]
    with opened(tmp_path) as journal:
        for i in range(len(steps)):
            journal.append(drawn("q", 0, i), {"seconds": sum(steps[: i + 1])})
            assert journal.costs.get("seconds", 0) < sum(steps[: i + 1]) + 1e-12
    with opened(tmp_path) as journal:
        assert sum(steps) - 1e-3 < journal.costs_so_far()["seconds"] < sum(steps) + 1e-12


def test_a_summary_that_is_newer_than_the_last_line_counts_and_an_older_one_does_not(tmp_path):
    """As of version 0.1, whose lines tell no costs; and of seconds between the last line and Ctrl-C."""
    summary = {"seconds": 10.0, "tokens": {"prefill_computed": 400, "generated": 7}, "engine": {"decode_steps": 20}}
    known = {"seconds": 10.0, "prefill_computed": 400, "decode_steps": 20}
    with opened(tmp_path) as journal:
        journal.append(drawn("q0"))
        journal.write_summary(summary)
    with opened(tmp_path) as journal:
        assert journal.costs_so_far() == known
        more = {"seconds": 12.0, "prefill_computed": 450, "decode_steps": 22}
        journal.append(drawn("q1"), more)
    with opened(tmp_path) as journal:  # killed before another summary was written
        assert journal.costs_so_far() == more


@pytest.mark.parametrize(
    "damaged", [{"seconds": "x"}, {"seconds": -1}, {"tokens": 5}, {"engine": {"decode_steps": [1]}}, {"seconds": True}]
)
def test_a_summary_with_damaged_costs_is_reported(tmp_path, damaged):
    with opened(tmp_path) as journal:
        journal.write_summary(damaged)
        with pytest.raises(UsageError, match=r"summary\.json is damaged; restore it, or delete it"):
            journal.costs_so_far()


def test_shards_have_cost_what_they_cost_together(tmp_path):
    for name, seconds, question in (("a", 2.0, "q0"), ("b", 3.0, "q1")):
        with opened(tmp_path / name) as journal:
            journal.append(drawn(question), {"seconds": seconds, "kv_bytes_held": 10 * seconds})
    with opened(tmp_path / "b") as journal:
        journal.write_summary({"seconds": 3.5})
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    with opened(tmp_path / "all") as journal:
        assert journal.costs_so_far() == {"seconds": 5.5, "kv_bytes_held": 30}


# --- one process, one config, one folder ---

HOLD = """
import json, sys
from pathlib import Path
from scaling.records.journal import Journal
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


OTHER_VALUES = {
    **dict.fromkeys(("base_url", "assistant_device", "out"), ("a", "b", None)),
    **dict.fromkeys(("batch_size", "max_batch_tokens"), (99, 1, "auto")),
    **{"samples": (99, 1), "adaptive": (0.9, 1, None), "engine_args": ({"a": 1}, {}, None)},
    **{"device": ("cpu", "cuda"), "voter": ("flat", "gone.py:mine")},
}


@pytest.mark.parametrize("key", MAY_CHANGE)
def test_other_options_may_differ_and_keep_what_is_there(tmp_path, key):
    filled(tmp_path, drawn("q", 1, 1))
    for value in OTHER_VALUES.get(key, (99, 1, None)):
        with opened(tmp_path, **{key: value}) as journal:
            assert list(journal.completions) == [("q", 1, 1)]
        assert load(tmp_path)[0]["config"] == CONFIG | {key: value}
        assert load(tmp_path)[0]["config_hash"] == config_hash(CONFIG)


@given(st.permutations(sorted(CONFIG)), st.sampled_from(sorted(CONFIG)))
def test_the_hash_is_of_what_a_run_computes(order, changed):
    assert config_hash({key: CONFIG[key] for key in order}) == config_hash(CONFIG)
    same = config_hash(CONFIG | {changed: "other"}) == config_hash(CONFIG)
    assert same == (changed in MAY_CHANGE)


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
        journal.record_thoughts(PathCosines("q", ((1.0,),)))
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
    first, second = (
        PromptedQuestion(name, "How many?", "5", ("x", "y"), "How\nmany\ud83d?", 3, 4, 2, 9) for name in ("q0", "q1")
    )
    for folder, questions in (("a", [second]), ("a", [first, second]), ("b", [second]), ("old", [])):
        with Journal.open(tmp_path / folder, config=CONFIG, environment={}, questions=questions):
            pass
    (tmp_path / "old" / "questions.jsonl").unlink()
    assert load_questions(tmp_path / "a") == [first, second]
    merge([tmp_path / "old", tmp_path / "b", tmp_path / "a"], tmp_path / "all")
    assert load_questions(tmp_path / "all") == [second, first]
    (tmp_path / "b" / "questions.jsonl").write_text('{"id": "q0"}\n')
    with pytest.raises(UsageError, match=r"questions\.jsonl line 1 is no question: it lacks text"):
        load_questions(tmp_path / "b")


def test_thoughts_of_shards_are_merged(tmp_path):
    def shard(name: str, *thoughts: PathCosines) -> Path:
        with opened(tmp_path / name) as journal:
            for one in thoughts:
                journal.record_thoughts(one)
        return tmp_path / name

    first, again, other = (PathCosines(name, ((1.0, 0.5), (0.5, 1.0))) for name in ("q1", "q1", "q2"))
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"text": "How few?"}, r"ask different things under the id q0 \(text differs\)"), ({"answer": "7"}, "--rescore")],
)
def test_shards_that_ask_other_things_under_one_id_are_not_merged(tmp_path, changes, said):
    asking(tmp_path / "a", asked("q0")).close()
    asking(tmp_path / "b", asked("q0", **changes)).close()
    with pytest.raises(UsageError, match=said):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


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
