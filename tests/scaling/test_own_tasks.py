"""A user's own task: from a file, a module, an entry point or YAML, it runs, is judged anew, learned from and reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.load import load as load_for_report
from scaling.cli import app
from scaling.config import RunConfig
from scaling.preview import preview
from scaling.records.errors import UsageError
from scaling.records.journal import load, load_questions
from scaling.rescore import rescore
from scaling.run import execute
from scaling.tasks.catalogue import definition_of, load_task
from scaling.tasks.task import Question

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_task.py"
ASKS = """
from scaling.tasks.task import Question, Task

class Asks(Task):
    request = "Say it."
    {body}
    def questions(self, split, limit):
        {questions}
"""
TWO = 'return [Question("a", "One?", "1.10"), Question("b", "Two?", "Tokyo")]'


@pytest.fixture
def write(tmp_path):
    """`write(body="", questions=TWO, name="asks.py")`: the file of a task of two questions."""

    def make(body: str = "", questions: str = TWO, name: str = "asks.py") -> Path:
        path = tmp_path / name
        path.write_text(ASKS.format(body=body, questions=questions))
        return path

    return make


def refusal(task: object, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        load_task(str(task), **options)
    return str(caught.value)


def test_the_example_is_short_and_runs_with_its_own_prompt_and_reader(tmp_path, config_of, silent, monkeypatch):
    assert len(EXAMPLE.read_text().splitlines()) <= 30
    task = load_task(str(EXAMPLE)).definition
    question = Question("Peru", "?", "lima")
    assert task.read("Not Rome, but Lima.", question) == "lima"
    assert task.read("no idea", question) is None
    monkeypatch.setattr("scaling.reading.own_words", lambda text, _: f"{text} Paris.")
    summary = execute(config_of(task=str(EXAMPLE), out=tmp_path / "run", max_new_tokens=None, shots=1, method="cot",
                                latent_paths=1, assistant="smollm2-135m"), silent)  # fmt: skip
    asked = load_questions(tmp_path / "run")
    assert [one.id for one in asked] == ["France", "Japan"]
    assert all("ends with the name" in one.prompt and "The capital of Italy is Rome." in one.prompt for one in asked)
    assert all(one.kind == "text" for one in asked)
    assert {one.answer for one in silent.completions} == {"paris"}
    assert (summary["task"], summary["accuracy"]) == ("capitals", 0.5)
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["max_new_tokens"], len(config["task_sha256"])) == (24, 64)


def test_a_moved_file_goes_on_and_an_edited_one_is_another_run(tmp_path, config_of, silent, write):
    options = {"out": tmp_path / "run", "method": "cot", "latent_paths": 1}
    file = write()
    execute(config_of(task=str(file), samples=1, **options), silent)
    moved = tmp_path / "elsewhere" / "asked.py"
    moved.parent.mkdir()
    shutil.move(file, moved)
    del silent.completions[:]
    execute(config_of(task=str(moved), samples=2, **options), silent)
    assert len(silent.completions) == 2
    moved.write_text(moved.read_text() + "\n    def read(self, text, question):\n        return 'tokyo'\n")
    with pytest.raises(UsageError, match="what `--task` is"):
        execute(config_of(task=str(moved), samples=2, **options), silent)
    told: list[str] = []
    summary = rescore(RunConfig(out=tmp_path / "run", task=str(moved)), told.append)
    assert {one.answer for one in load(tmp_path / "run")[1]} == {"tokyo"}
    assert summary["accuracy"] == 0.5
    del silent.completions[:]
    execute(config_of(task=str(moved), samples=2, **options), silent)  # the run is now one of the edited task
    assert silent.completions == []
    moved.rename(file)
    with pytest.raises(UsageError, match="cannot be read"):
        rescore(RunConfig(out=tmp_path / "run"), told.append)
    assert rescore(RunConfig(out=tmp_path / "run", task=str(file)), told.append)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("def read(self, text, q): return {}", "TypeError: `read` must give a text or None"),
        ("def read(self, text, q): return False", "TypeError: `read` must give a text or None"),
        ("def read(self, text, q): return chr(0xD800)", "UnicodeEncodeError"),
        ("def read(self, text, q): raise SystemExit(3)", "SystemExit"),
        (
            "read = lambda self, text, q: '5'\n    def equal(self, q, a, c): return 'no'",
            "TypeError: `equal` must give True or False",
        ),
        (
            "read = lambda self, text, q: '5'\n    def equal(self, q, a, c): pass",
            "TypeError: `equal` must give True or False",
        ),
        ("read = lambda self, text, q: '5'\n    def equal(self, q, a, c): raise SystemExit", "SystemExit"),
    ],
)
def test_what_is_no_answer_and_no_verdict_is_said_with_the_completion(tmp_path, config_of, silent, write, body, why):
    file = write(body)
    summary = execute(config_of(task=str(file), out=tmp_path / "run", method="cot", latent_paths=1, samples=1), silent)
    assert summary["unread"] == len(silent.completions) == 2
    assert all(one.unread.startswith(why) and not one.correct for one in silent.completions)


@pytest.mark.parametrize(
    ("kind", "gold", "read"),
    [("text", "Two Words", "TWO WORDS"), ("yes_no", "yes", "Yes"), ("number", "1200", "1,200.0")],
)
def test_answers_of_an_own_reader_are_brought_into_canonical_form(tmp_path, config_of, silent, write, kind, gold, read):
    file = write(
        f"kind = {kind!r}\n    read = lambda self, text, q: {read!r}", f'return [Question("a", "?", {gold!r})]'
    )
    execute(config_of(task=str(file), out=tmp_path / "run", method="cot", latent_paths=1, samples=1), silent)
    assert all(one.correct for one in silent.completions)


def test_questions_without_end_need_a_limit(write):
    endless = 'return (Question(f"q{n}", "?", "1") for n in __import__("itertools").count())'
    assert "give it a `limit` too" in refusal(write("generated = True", endless))


def test_a_reader_that_raises_leaves_a_completion_unread_and_the_run_goes_on(tmp_path, config_of, silent, write):
    body = "def read(self, text, question):\n        return {}"
    for number, (said, reason) in enumerate(
        [
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ('open("/nowhere")', "FileNotFoundError"),
            ("7", "TypeError"),
        ]
    ):
        del silent.completions[:]
        file = write(body.format(said), name=f"asks{number}.py")
        summary = execute(config_of(task=str(file), out=tmp_path / str(number), method="cot", latent_paths=1), silent)
        assert (summary["unread"], summary["complete"]) == (4, True)
        assert all(one.unread.startswith(reason) and one.answer is None for one in silent.completions)
    file = write("def equal(self, question, answer, checker):\n        open('/nowhere')\n    def read(self, text, question):"
                 "\n        return 'x'", name="equal.py")  # fmt: skip
    assert execute(config_of(task=str(file), out=tmp_path / "e", method="cot", latent_paths=1), silent)["unread"] == 4


def test_texts_that_look_like_numbers_are_no_numbers(tmp_path, config_of, silent, write):
    """Mistake: version 1.10 and version 1.1 counted as one answer, which they would be as numbers."""
    body = 'said = ["1.10", "1.1", "1.1"]\n    def read(self, text, question):\n        return self.said.pop()'
    file = write(body)
    options = {"task": str(file), "method": "cot", "latent_paths": 1, "samples": 3, "limit": 1, "batch_size": 1}
    summary = execute(config_of(out=tmp_path / "run", **options), silent)
    assert sum(one.correct for one in silent.completions) == 1
    assert (summary["accuracy"], summary["coverage"], summary["pass_at_1"]) == (0.0, 1.0, 1 / 3)
    report = load_for_report(tmp_path / "run")
    assert (report.lenient.sizes.tolist(), int(report.lenient.right.sum())) == ([2], 1)


def test_a_task_is_called_as_its_file_whatever_names_it(write):
    file = write()
    by_file, by_name = load_task(str(file)), load_task(f"{file}:Asks")
    assert (by_file.name, by_file.questions, by_file.identity) == ("asks", by_name.questions, by_name.identity)
    assert by_name.name == "asks"


def test_an_object_is_a_task_too_and_is_not_changed(tmp_path):
    file = tmp_path / "plain.py"
    file.write_text("from scaling.tasks.task import PlainTask\nplain = PlainTask('yes_no')\n")
    task = definition_of(str(file))
    assert (task.kind, task.name) == ("yes_no", "plain")
    assert definition_of(str(file)) is not task


def test_a_module_and_an_entry_point_bring_the_same_task(tmp_path, write, monkeypatch):
    (tmp_path / "some_package").mkdir()
    write(name="some_package/module.py")
    made = tmp_path / "some_package-1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1\n")
    (made / "entry_points.txt").write_text("[softcotpp.tasks]\nasking = some_package.module:Asks\n")
    monkeypatch.syspath_prepend(tmp_path)
    module, point = load_task("some_package.module:Asks"), load_task("asking")
    assert (module.name, point.name) == ("Asks", "asking")
    assert module.questions == point.questions
    assert module.identity == point.identity != {}
    assert "give asking, arithmetic, " in refusal("askin")


@pytest.fixture
def yaml_task(tmp_path):
    """`yaml_task(text, rows)`: the file capitals.yaml beside data/eval.jsonl."""

    def make(text: str, rows: list[dict[str, object]]) -> Path:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "capitals.yaml").write_text(text)
        return tmp_path / "capitals.yaml"

    return make


CAPITALS = """
data: data
splits: {test: eval.jsonl}
columns: {question: prompt, answer: target, rationale: steps}
kind: text
instruction: Name the city.
max_new_tokens: 9
limit: 2
"""
ROWS = [{"prompt": f"Capital of {one}?", "target": two, "steps": None} for one, two in ("FP", "JT", "PL")]


def test_a_yaml_file_is_a_task_without_code(tmp_path, config_of, silent, yaml_task, monkeypatch):
    file = yaml_task(CAPITALS, ROWS)
    monkeypatch.chdir("/")
    task = load_task(str(file))
    assert (task.name, task.kind, len(task.questions)) == ("capitals", "text", 3)
    assert task.questions[0] == Question(task.questions[0].id, "Capital of F?", "p")
    assert len({question.id for question in task.questions}) == 3
    options = {"task": str(file), "limit": None, "max_new_tokens": None, "method": "cot", "latent_paths": 1}
    summary = execute(config_of(out=tmp_path / "run", **options), silent)
    assert summary["num_questions"] == 2
    assert all("Name the city." in one.prompt for one in load_questions(tmp_path / "run"))
    file.write_text(CAPITALS.replace("Name the city", "Name it"))
    with pytest.raises(UsageError, match="what `--task` is"):
        execute(config_of(out=tmp_path / "run", **options), silent)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: [1", "is not valid YAML"),
        ("- a", "must hold `key: value` lines"),
        ("kin: text", "unknown key `kin`: give data, kind"),
        (CAPITALS + "name: a/b\n", "its `name` is 'a/b': give a word"),
        (CAPITALS.replace("kind: text", "kind: word"), "its `kind` is 'word': choose one of number, choice"),
        (CAPITALS.replace("limit: 2", "limit: no"), "its `limit` is False: give a whole number"),
        (CAPITALS.replace("answer: target", "answr: target"), "rationale, cluster, and not for `answr`"),
        (CAPITALS.replace("target", "targte"), "must have the column `targte`"),
        (CAPITALS.replace("eval.jsonl", "evil.jsonl"), "does not exist. Did you mean `eval.jsonl`?"),
        (CAPITALS.replace("{test:", "{other:"), "`--split` must be one of `other` for the task `capitals`"),
        (CAPITALS.replace("kind: text", "kind: number"), "must be one number such as 18"),
        ("kind: text", "needs `--data`"),
    ],
)
def test_a_wrong_yaml_file_is_a_sentence(yaml_task, text, said):
    assert said in refusal(yaml_task(text, ROWS))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x = 1\nraise ValueError('no')", "asks.py, line 2 (ValueError: no)"),
        ("class A: ...", "has nothing of that kind"),
        ("from scaling.tasks.task import Task\nclass A(Task): ...\nclass B(Task): ...", "has 2 of that kind (A, B)"),
        ("from scaling.tasks.task import Task\nclass A(Task):\n    kind = 'numbr'", "its `kind` is 'numbr'"),
        ("from scaling.tasks.task import Task\nclass A(Task):\n    max_new_tokens = 0", "its `max_new_tokens` is 0"),
        (
            "from scaling.tasks.task import Task\nclass A(Task):\n    def __init__(self): 1 / 0",
            "line 3 (ZeroDivisionError",
        ),
        ("from scaling.tasks.task import Task\nclass A(Task): ...", "the task asks needs `--data`"),
    ],
)
def test_a_wrong_file_is_a_sentence_with_file_and_line(tmp_path, content, said):
    (tmp_path / "asks.py").write_text(content)
    assert said in refusal(tmp_path / "asks.py")


def test_a_wrong_name_in_a_file_is_a_sentence(write, yaml_task):
    file = write()
    assert f"{file} has no `Ask`. Did you mean `Asks`?" in refusal(f"{file}:Ask")
    assert "must be a subclass of `Task`, and is of type str" in refusal(f"{file}:Asks.request")
    assert "records.py (TypeError" in refusal(f"{file}:Question")
    assert "Did you mean `capitals.yaml`?" in refusal(yaml_task("", []).with_stem("capital"))


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        ("return [Question('a', 'A?', 'x'), Question('a', 'B?', 'y')]", "question 2 ('a') has the id of question 1"),
        ("return [Question('a', ' ', 'x')]", "must have a text as its `text`, not ' '"),
        ("return [Question('a', 'A?', 5)]", "must have a text as its `answer`, not 5"),
        ("return [Question(7, 'A?', 'x')]", "must have a text as its `id`, not 7"),
        ("return [Question('a', 'A?', 'x', rationale=3)]", "must have texts as its `rationale`, not 3"),
        ("return [Question('a', 'A?', '...')]", "must be a text with at least one letter"),
        ("return ['a']", "question 1 must be a `Question`, not 'a'"),
        ("return 5", "`questions` fails"),
        ("return []", "must hold at least one question"),
        ("raise KeyError('x')", "asks.py line 8 (KeyError: 'x')"),
    ],
)
def test_wrong_questions_are_refused_with_the_question(write, questions, said):
    assert said in refusal(write(questions=questions))


def test_a_prompt_that_fails_is_a_sentence(tmp_path, config_of, silent, write):
    for body, said in (
        ("def text(self, question): return 1 / 0", r"asks.py line 6 \(ZeroDivisionError.* at question a"),
        ("def asks(self, question): return 5", "must give a text, and gave 5 for question a"),
    ):
        with pytest.raises(UsageError, match=said):
            execute(config_of(task=str(write(body)), out=tmp_path / "run", method="cot", latent_paths=1), silent)


def test_a_split_that_the_task_lacks_is_refused(write):
    assert "`--split` must be one of `test` for the task `asks`" in refusal(write("splits = ('test',)"), split="dev")


def test_data_goes_to_a_task_that_reads_it_and_is_refused_by_others(tmp_path, write):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "r", "question": "Row?", "answer": "yes"}')
    file = write()
    assert "leave `--data` out" in refusal(file, data=rows)
    reads = write("takes_data = True", questions="return [Question('d', self.data.name, 'x')]")
    assert load_task(str(reads), data=rows).questions == (Question("d", "rows.jsonl", "x"),)
    plain = tmp_path / "plain.py"
    plain.write_text("from scaling.tasks.task import Task\nclass Plain(Task):\n    kind = 'yes_no'\n")
    assert load_task(str(plain), data=rows).questions == (Question("r", "Row?", "yes"),)


def test_an_endless_task_is_cut_and_gives_its_defaults(write):
    file = write("generated, limit = True, 3", "n = 0\n        while True:\n            n += 1\n            yield "
                 "Question(f'{split}{n}', f'{split} {n}?', 'x')")  # fmt: skip
    assert len(load_task(str(file)).questions) == 3
    assert RunConfig(task=str(file)).resolved().limit == 3
    assert definition_of(str(file)).generated


def test_the_command_shows_its_prompt_and_its_errors(config_of, write):
    settings, prompts = preview(config_of(task=str(EXAMPLE)))
    assert (settings["num_questions"], "ends with the name" in prompts) == (2, True)
    broken = write("x = (")
    done = CliRunner().invoke(app, ["--task", str(broken), "--dry-run"])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"scale-run: `--task` {broken} failed at {broken}, line ")
