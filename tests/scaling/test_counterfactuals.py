"""Questions with one number changed, and thoughts made of them: `--control counterfactual`, and doses of thoughts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.methods.thoughts import CachedThoughts, Constant, Edited, Scaled
from scaling.preview import preview
from scaling.prompts import PromptBuilder
from scaling.records.errors import UsageError
from scaling.records.journal import load_questions
from scaling.records.records import Question
from scaling.run import execute, prepare
from scaling.tasks.catalogue import load_task
from scaling.tasks.counterfactuals import Counterfactual, changes, with_another_number
from scaling.tasks.hidden_fact import DIGITS
from scaling.tasks.task import PlainTask, Task, counterfactual_of

NUMBER = re.compile("[0-9]+")
COUNTERFACTUAL = {"control": "counterfactual"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(config_of, silent):
    """`made(**changes)`: the method of a run, with its setup."""
    return lambda **changes: prepare(config_of(**changes), silent)


def thoughts_of(setup, question: Question) -> torch.Tensor:
    return torch.stack([one.thoughts for one in setup.method.prompts(question, range(setup.config.latent_paths))])


# ---- one number of a text


words = st.lists(st.one_of(st.integers(1, 10**9).map(str), st.text("ab .,", min_size=1, max_size=5)), max_size=8)


@given(words)
def test_exactly_one_number_changes_and_keeps_its_length(parts):
    text = " ".join(parts)
    changed = with_another_number(text)
    if changed is None:
        assert not any(part.isdigit() for part in parts)
        return
    assert changed == with_another_number(text)
    before, after = NUMBER.findall(text), NUMBER.findall(changed.text)
    assert NUMBER.split(text) == NUMBER.split(changed.text)
    assert [len(number) for number in before] == [len(number) for number in after]
    [(old, new)] = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert int(old) != int(new) >= 2
    assert new[0] != "0"


@pytest.mark.parametrize(
    ("text", "unchanged"),
    [("3.25 euros", ".25 euros"), ("1,200 men", ",200 men"), ("the 2nd of 3", " of "), ("a1 B2 $4", "a1 B2 $")],
)
def test_of_a_decimal_and_of_thousands_the_beginning_changes_and_words_stay(text, unchanged):
    for change in changes(text):
        assert unchanged in change.text


@pytest.mark.parametrize("text", ["", "two men", "the 2nd man", "0 men", "x1", "\ud800"])
def test_a_text_without_numbers_stays(text):
    assert with_another_number(text) is None


# ---- what tasks know of the answer


def worked_out(task: Any, text: str) -> int:
    """The answer to an arithmetic question: the rationale of the same story, worked out with the numbers of the text."""
    [question] = [one for one in task.questions if NUMBER.split(one.text) == NUMBER.split(text)][:1]
    new = dict(enumerate(NUMBER.findall(text)))
    value, place = int(new[0]), 1
    for sentence in question.rationale:
        sign, operand = re.findall(r"so [0-9]+ (.) ([0-9]+) =", sentence)[0]
        if " twice" not in sentence:
            operand, place = new[place], place + 1
        value = {"+": value + int(operand), "-": value - int(operand), "*": value * int(operand)}.get(
            sign, value / int(operand)
        )
    return value


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4])
@pytest.mark.parametrize("split", ["train", "test"])
def test_arithmetic_knows_the_answer_to_the_edited_question(split, difficulty):
    task = load_task("arithmetic", split=split, difficulty=difficulty, limit=60)
    edits = [counterfactual_of(task.definition, question) for question in task.questions]
    assert edits.count(None) <= 2  # as 9 / 3 - 2, which no other digit leaves positive and whole
    for question, changed in zip(task.questions, edits, strict=True):
        if changed is None:
            continue
        assert changed.answer not in (None, question.answer)
        same_story = load_task_of([question])
        assert worked_out(same_story, changed.text) == int(changed.answer)


def load_task_of(questions: list[Question]) -> Any:
    return type("Loaded", (), {"questions": questions})


def test_the_hidden_fact_gets_another_digit():
    task = load_task("hidden-fact", limit=300)
    seen = set()
    for question in task.questions:
        changed = counterfactual_of(task.definition, question)
        edited = Question("", changed.text, changed.answer)
        assert changed.answer != question.answer
        assert f"has {changed.answer} " in changed.text
        assert task.definition.text(edited) == task.definition.text(question)  # the backbone reads the same
        things = re.search(r"How many (\w+)", question.text)[1]
        assert f"{changed.answer} {things if changed.answer != '1' else things[:-1]}." in changed.text
        seen.add(int(changed.answer))
    assert seen == set(DIGITS)


def test_other_tasks_change_a_number_and_know_no_answer():
    task = load_task("countdown", limit=20)
    for question in task.questions:
        changed = counterfactual_of(task.definition, question)
        assert changed.answer is None
        assert changed.text != question.text
    assert counterfactual_of(PlainTask("text"), Question("q", "Who?", "I")) is None


def test_a_users_task_says_what_it_changes_and_mistakes_are_named():
    class Mine(Task):
        name, kind = "mine", "number"
        given: Any = None

        def counterfactual(self, question):  # noqa: ARG002
            return 1 / 0 if self.given == "fail" else self.given

    task, question = Mine(), Question("q7", "How many legs has a dog?", "4")
    task.given = Counterfactual("How many legs has a bird?", "2.0")
    assert counterfactual_of(task, question) == Counterfactual("How many legs has a bird?", "2")
    task.given = ("How many legs has a bird?", None)
    assert counterfactual_of(task, question) == Counterfactual("How many legs has a bird?", None)
    task.given = Counterfactual(question.text, "2")  # the assistant would read the same
    assert counterfactual_of(task, question) is None
    for given_, message in [
        ("fail", "`counterfactual` fails"),
        (3, "must give a text"),
        (("a", 3), "must give a text"),
    ]:
        task.given = given_
        with pytest.raises(UsageError, match=message):
            counterfactual_of(task, question)


# ---- thoughts of edited questions


@pytest.mark.parametrize("method", ["softcot++", "softcot-p"])
def test_the_assistant_reads_the_edited_question_and_the_backbone_the_true_one(made, method):
    own, control = made(method=method), made(method=method, **COUNTERFACTUAL)
    for number, question in enumerate(own.task.questions):
        changed = counterfactual_of(own.task.definition, question)
        edited = Question(question.id, changed.text, changed.answer)
        before, after = (setup.method.prompts(question, [0, 1]) for setup in (own, control))
        assert [(p.prefix, p.suffix, p.path) for p in before] == [(p.prefix, p.suffix, p.path) for p in after]
        assert not torch.equal(thoughts_of(own, question), thoughts_of(control, question))
        # noise included, as the edited question has the id of its original
        assert torch.equal(thoughts_of(own, edited), thoughts_of(control, question))
        asked = control.asked[number]
        assert (asked.text, asked.counterfactual, asked.counterfactual_answer) == (question.text, *changed)
        assert own.asked[number].counterfactual is None
        assistant = PromptBuilder.of(control.assistant, task=control.task.definition)
        assert asked.assistant_tokens == len(assistant.assistant(edited))


def test_other_runs_record_nothing_new(run, tmp_path):
    run(tmp_path / "run")
    assert "counterfactual" not in (tmp_path / "run" / "questions.jsonl").read_text()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["thought_scale"] is None


def test_a_run_is_extended_and_reads_the_same_edits(run, tmp_path):
    whole = run(tmp_path / "whole", limit=3, samples=2, **COUNTERFACTUAL)
    run(tmp_path / "grown", limit=2, samples=1, **COUNTERFACTUAL)
    assert run(tmp_path / "grown", limit=3, samples=2, **COUNTERFACTUAL) == whole
    asked = load_questions(tmp_path / "grown")
    assert asked == load_questions(tmp_path / "whole")
    assert all(one.counterfactual and one.counterfactual_answer for one in asked)


def test_an_edit_that_has_changed_since_is_noticed(run, tmp_path, monkeypatch):
    run(tmp_path / "run", **COUNTERFACTUAL)
    monkeypatch.setattr(Task, "counterfactual", lambda _, question: Counterfactual(f"{question.text} 5", "5"))
    monkeypatch.delattr("scaling.tasks.arithmetic.Arithmetic.counterfactual")
    with pytest.raises(UsageError, match="counterfactual of"):
        run(tmp_path / "run", samples=3, **COUNTERFACTUAL)


def test_the_dry_run_shows_what_the_assistant_reads(config_of):
    _, prompts = preview(config_of(**COUNTERFACTUAL))
    task = load_task("arithmetic", limit=1)
    changed = counterfactual_of(task.definition, task.questions[0])
    backbone, assistant = prompts.split("assistant prompt")
    assert task.questions[0].text in backbone
    assert changed.text in assistant
    assert "the thoughts of the question with one number changed" in assistant


def test_questions_without_numbers_are_counted_and_a_run_of_these_alone_is_refused(made, config_of, tmp_path):
    data = tmp_path / "mixed.jsonl"
    rows = [{"question": "How many legs have 2 dogs?", "answer": "8"}, {"question": "How many are two?", "answer": "2"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    setup = made(data=data, limit=None, **COUNTERFACTUAL)
    assert [one.counterfactual is None for one in setup.asked] == [False, True]
    own = made(data=data, limit=None)
    changed, unchanged = setup.task.questions
    assert torch.equal(thoughts_of(setup, unchanged), thoughts_of(own, unchanged))
    assert not torch.equal(thoughts_of(setup, changed), thoughts_of(own, changed))
    _, prompts = preview(config_of(data=data, limit=None, **COUNTERFACTUAL))
    assert "1 of 2 questions have no number to change" in prompts
    with pytest.raises(UsageError, match="none of the 2 questions has one in digits"):
        made(task="prosqa", **COUNTERFACTUAL)


CARRIES = """
import re, torch
class Carries:
    name, soft_tokens = "carries", 1
    def __init__(self, surroundings):
        self.width = surroundings.backbone.width
    def thoughts(self, question):
        return torch.full((1, 1, self.width), float(re.search("[0-9]+", question.text)[0]))
"""


def test_answers_of_a_backbone_that_reads_the_digit_in_the_thoughts_follow_the_edit(made, tmp_path):
    """The backbone is a stub that writes the digit of its soft token: the only place where it can be."""
    file = tmp_path / "carries.py"
    file.write_text(CARRIES)
    chosen = {"method": f"{file}:Carries", "latent_paths": 1, "task": "hidden-fact", "limit": 10}
    for control, expected in (({}, "answer"), (COUNTERFACTUAL, "counterfactual_answer")):
        setup = made(**chosen, **control)
        for question, asked in zip(setup.task.questions, setup.asked, strict=True):
            [prompt] = setup.method.prompts(question, [0])
            assert not NUMBER.search(asked.prompt.split("How many")[0].split("user")[-1])
            said = f"{int(prompt.thoughts[0, 0])}"
            assert setup.task.definition.read(said, question).lenient == getattr(asked, expected)
            assert (said == question.answer) == (not control)


# ---- doses


def test_a_dose_moves_thoughts_along_the_line_from_their_mean(made):
    own, mean = made(), made(control="mean")
    none, half, more = (made(thought_scale=scale) for scale in (0, 0.5, 1.5))
    for question in own.task.questions:
        thought, centre = thoughts_of(own, question), thoughts_of(mean, question)
        assert torch.equal(thoughts_of(none, question), centre)
        assert torch.allclose(thoughts_of(half, question), (thought + centre) / 2, atol=1e-6)
        assert torch.allclose(thoughts_of(more, question) - centre, 1.5 * (thought - centre), atol=1e-5)


def test_dose_1_is_the_run_without_and_dose_0_draws_the_chains_of_the_mean(run, tmp_path, config_of):
    plain = run(tmp_path / "plain")
    assert config_of(thought_scale=1).resolved() == config_of().resolved()
    assert run(tmp_path / "plain", thought_scale=1) == plain  # goes on in the same folder
    assert run(tmp_path / "zero", thought_scale=0) == run(tmp_path / "mean", control="mean")
    with pytest.raises(UsageError):
        run(tmp_path / "plain", thought_scale=0.5)


def test_a_dose_of_an_edited_question_is_around_the_mean_of_the_true_ones(made):
    mean, edited = made(control="mean"), made(**COUNTERFACTUAL)
    both = made(thought_scale=0.5, **COUNTERFACTUAL)
    question = both.task.questions[0]
    centre = thoughts_of(mean, question)
    assert torch.allclose(thoughts_of(both, question), (thoughts_of(edited, question) + centre) / 2, atol=1e-6)


@pytest.mark.parametrize("control", ["zero", "mean", "unk", "none"])
def test_a_dose_of_what_is_the_same_for_every_question_is_refused(config_of, control):
    with pytest.raises(UsageError, match=r"`--thought-scale` 0\.5 scales thoughts"):
        config_of(control=control, thought_scale=0.5).resolved()


def test_methods_without_thoughts_have_no_dose(config_of):
    with pytest.raises(UsageError, match="`--thought-scale` is for methods with soft thoughts"):
        config_of(method="cot", latent_paths=1, thought_scale=0).resolved()


@given(st.floats(0, 3, width=32))
def test_a_scaled_thought_is_as_far_from_the_mean_as_asked(scale):
    thought, mean = torch.tensor([[[3.0, -1.0]]]), torch.tensor([[[1.0, 1.0]]])
    scaled = Scaled(Constant(thought), mean, scale)(Question("q", "?", "1"))
    assert torch.allclose(scaled - mean, scale * torch.tensor([[[2.0, -2.0]]]), atol=1e-5)


# ---- methods of the user's own


OWN = """
import torch
class Reader:
    name, soft_tokens = "reader", 2
    def __init__(self, surroundings):
        self.width = surroundings.backbone.width
    def batch_thoughts(self, questions):
        return torch.stack([torch.full((1, 2, self.width), float(len(q.text) + ord(q.text[-30]))) + sum(map(ord, q.text))
                            for q in questions])
"""


def test_a_method_of_ones_own_reads_the_edited_question(made, tmp_path):
    file = tmp_path / "reader.py"
    file.write_text(OWN)
    chosen = {"method": f"{file}:Reader", "latent_paths": 1}
    own, control, half = (
        made(**chosen, **more) for more in ({}, COUNTERFACTUAL, COUNTERFACTUAL | {"thought_scale": 0.5})
    )
    for question in own.task.questions:
        changed = counterfactual_of(own.task.definition, question)
        edited = Question(question.id, changed.text, changed.answer)
        assert torch.equal(thoughts_of(control, question), thoughts_of(own, edited))
        assert not torch.equal(thoughts_of(control, question), thoughts_of(own, question))
        assert not torch.equal(thoughts_of(half, question), thoughts_of(control, question))


def test_the_cache_of_thoughts_tells_edited_questions_from_true_ones(config_of, silent):
    setup = prepare(config_of(), silent)
    moved: list[int] = []
    cached = CachedThoughts(setup.method.thoughts, made_by={"thinker": "a"}, to_device=lambda: moved.append(1))
    question = setup.task.questions[0]
    changed = counterfactual_of(setup.task.definition, question)
    edited = Edited(cached, lambda one: Question(one.id, changed.text, changed.answer))
    assert not torch.equal(cached(question), edited(question))
    assert len(moved) == 2
    assert torch.equal(edited(question), edited(question))
    assert len(moved) == 2


def test_execute_tells_how_many_were_left_alone(config_of, tmp_path):
    told: list[str] = []

    class Watch:
        status = told.append

        def start(self, *_: Any) -> None:
            pass

        def completion(self, _: Any) -> None:
            pass

    data = tmp_path / "mixed.jsonl"
    rows = [{"question": f"How many legs have {n} dogs?", "answer": "8"} for n in (2, "some", 4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    execute(config_of(data=data, limit=None, out=tmp_path / "run", **COUNTERFACTUAL), Watch())
    assert any("1 of 3 questions have no number to change" in line for line in told)
