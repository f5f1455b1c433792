"""`--targets`: what each kind says after a question, mixtures, teachers, and how many questions are generated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contrastive.parallel import Processes
from contrastive.target_loss import Reader
from scaling.config import load_config
from scaling.methods.cot import ChainOfThought
from scaling.models import loading
from scaling.records.errors import Interrupted, UsageError
from scaling.records.records import Question
from scaling.tasks.kinds import KINDS
from scaling.tasks.task import PlainTask
from scaling.training import run as run_module
from scaling.training.adapter import LoraTrainer, new_adapter
from scaling.training.answer_spans import before_answer
from scaling.training.config import TrainConfig
from scaling.training.lora import train_lora
from scaling.training.mixture import TARGETS, parse_targets, plain_targets
from scaling.training.run import train
from scaling.training.targets import ExampleBuilder, examples_of, split_of
from scaling.wording import SHIPPED, Wording

QUESTION = Question("q", "How many are 3 and 4, twice?", "14", rationale=("3 + 4 = 7.", "7 + 7 = 14."))
CHAIN = "Both are 7. Twice that is 14.\nThe answer is 14."


ANSWERS = [
    *(("number", answer) for answer in ("14", "-7", "0.5", "1/3")),
    *(("choice", "B"), ("yes_no", "no"), ("text", "just because of you"), ("text", "paris"), ("set", "3, red")),
    *(("expression", answer) for answer in ("0.5", "\\frac{\\sqrt{3}}{2}", "(1, 2)", "-1, 2", "x^2+1")),
]


class Quiet:
    """Observes a training. stop_at: the step after which it is interrupted."""

    def __init__(self, stop_at: int = 0):
        self.said: list[str] = []
        self.healths: list[Any] = []
        self._stop_at = stop_at

    def status(self, text):
        self.said.append(text)

    def sampling(self):
        return self

    def started(self, progress, schedule):
        pass

    def stepped(self, progress, row):  # noqa: ARG002
        if progress.step == self._stop_at:
            raise KeyboardInterrupt

    def examined(self, progress, health):  # noqa: ARG002
        self.healths.append(health)


@pytest.fixture
def model(tiny_model_folder):
    return loading.load(str(tiny_model_folder), name=str(tiny_model_folder), device="cpu", dtype=torch.float32)


@pytest.fixture
def builder(model) -> Callable[..., ExampleBuilder]:
    """`builder(kind="number", num_slots=3, **wording)`: for the tiny model."""

    def make(kind: str = "number", *, num_slots: int = 3, backbone: Any = None, **wording: str) -> ExampleBuilder:
        asked = Wording(**wording)
        return ExampleBuilder(backbone or model, None, task=PlainTask(KINDS[kind]), num_slots=num_slots, wording=asked)

    return make


@pytest.fixture
def settings(tiny_model_folder, tmp_path) -> Callable[..., TrainConfig]:
    """`settings(**changes)`: 6 arithmetic questions of two steps, 2 paths of 3 soft tokens, 4 steps."""
    model = str(tiny_model_folder)
    standard = {
        **{"backbone": model, "device": "cpu", "dtype": "float32", "limit": 6, "validation": 3, "difficulty": 2},
        **{"max_steps": 4, "batch_size": 3, "validate_every": 2, "out": tmp_path / "trained"},
    }

    def make(**changes: Any) -> TrainConfig:
        paths = {} if changes.get("method") == "lora" else {"latent_paths": 2, "soft_tokens": 3}
        assistant = {} if "method" in changes else {"assistant": model}
        return TrainConfig.model_validate({**standard, **paths, **assistant, **changes})

    return make


@pytest.fixture
def own_chains(monkeypatch):
    """A random model is never right: its own right chains are the gold solutions."""

    def chains(split, *_):
        task = split.task.definition
        return {question.id: [task.solution(question)] for question in (*split.train, *split.validation)}

    monkeypatch.setattr(run_module, "own_chains", chains)


def texts(build: ExampleBuilder, model: Any, kind: str, chains: tuple[str, ...] = (), question=QUESTION) -> list[str]:
    """The targets of a question as text, end token included."""
    made = examples_of(kind, [question], {question.id: chains}, build)
    return [model.tokenizer.decode(example.target) for example in made]


# ---- the option


@given(st.dictionaries(st.sampled_from(TARGETS), st.sampled_from([1, 2, 0.5, 0.25]), min_size=1), st.randoms())
def test_a_mixture_has_one_spelling(weights, rng):
    """Whatever its order, and whether weights of 1 are written. A single kind has no weight."""
    names = list(weights)
    rng.shuffle(names)
    spelled = [name if weights[name] == 1 and rng.random() < 0.5 else f"{name}:{weights[name]}" for name in names]
    plain = plain_targets(rng.choice([",", " , "]).join(spelled))
    assert plain_targets(plain) == plain
    assert parse_targets(plain) == (weights if len(weights) > 1 else dict.fromkeys(weights, 1))
    assert list(parse_targets(plain)) == [name for name in TARGETS if name in weights]
    if set(weights.values()) == {1}:
        assert plain == ",".join(name for name in TARGETS if name in weights)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_single_kind_is_spelled_as_ever(kind):
    assert TrainConfig(targets=kind).targets == kind


@pytest.mark.parametrize(
    ("given_targets", "message"),
    [
        ("golt", r"`--targets` is 'golt': targets are gold, self, answer, first-step, teacher, or several .* `gold`\?"),
        ("answer,answer", "answer stands there twice"),
        ("answer:0,gold", "the weight of answer must be a number above 0"),
        ("answer:x,gold", "the weight of answer must be a number above 0"),
        ("answer:inf,gold", "the weight of answer must be a number above 0"),
        ("answer,", "targets are gold"),
        (3, "should be a valid string"),
    ],
)
def test_what_is_no_mixture_is_refused(given_targets, message):
    with pytest.raises(UsageError, match=message):
        load_config(None, {"targets": given_targets}, TrainConfig)


@pytest.mark.parametrize("kind", ["gold", "answer", "first-step", "teacher", "self,answer"])
def test_a_thought_before_the_answer_needs_chains_that_have_one(kind):
    with pytest.raises(UsageError, match=r"`--thinking on` .* give `--targets self`"):
        TrainConfig(targets=kind, thinking="on").resolved()


# ---- what they say


@pytest.mark.parametrize(
    ("wording", "answer", "step"),
    [
        ({}, "The answer is 14.", "3 + 4 = 7."),
        ({"prompt": "boxed"}, "The answer is \\boxed{14}.", "3 + 4 = 7."),
        ({"prompt": "paper"}, "The answer is \\boxed{14}.", "## Step 1:\n3 + 4 = 7."),
        ({"prefill": "The answer"}, " is 14.", None),
        ({"prefill": "First,"}, " The answer is 14.", " 3 + 4 = 7."),
    ],
    ids=str,
)
def test_answers_and_first_steps_are_worded_as_the_prompt_does(builder, model, wording, answer, step):
    build = builder(**wording)
    assert texts(build, model, "answer") == [f"{answer}<|im_end|>"]
    if step is not None:
        assert texts(build, model, "first-step") == [step], "and no end token, as the text goes on"


def test_an_answer_alone_and_a_first_step_are_the_ends_of_the_gold_target(builder, model):
    build = builder()
    [gold], [answer], [step] = (texts(build, model, kind) for kind in ("gold", "answer", "first-step"))
    assert gold.endswith(answer)
    assert gold.startswith(step)


@pytest.mark.parametrize(
    ("rationale", "prompt"), [((), "plain"), (("3 + 4 = 7.",), "direct")], ids=["no rationale", "not shown"]
)
def test_a_question_without_a_first_step_has_no_such_target(builder, model, rationale, prompt):
    question = Question("q", "How many are 3 and 4?", "7", rationale=rationale)
    assert texts(builder(prompt=prompt), model, "first-step", question=question) == []
    assert len(texts(builder(prompt=prompt), model, "answer", question=question)) == 1


def test_the_first_step_of_a_rationale_in_one_text_is_its_first_line(builder, model):
    question = Question("q", "How many are 3 and 4, twice?", "14", rationale=("\n3 + 4 = 7\n7 + 7 = 14",))
    assert texts(builder(), model, "first-step", question=question) == ["3 + 4 = 7"]


def test_a_model_without_a_chat_format_answers_after_a_space(builder, other_model_folder):
    other = loading.load(str(other_model_folder), name="other", device="cpu", dtype=torch.float32)
    assert texts(builder(backbone=other), other, "answer") == [" The answer is 14.<|endoftext|>"]


@pytest.mark.parametrize(("kind", "answer"), [("number", "14"), ("number", "-7"), ("yes_no", "no"), ("choice", "B")])
def test_the_answers_own_tokens_are_known(builder, model, kind, answer):
    choices = ("this", "that") if kind == "choice" else ()
    question = Question("q", "Which?", answer, choices=choices, rationale=(f"It is {answer}.",))
    for targets in ("gold", "answer"):
        [example] = examples_of(targets, [question], {}, builder(kind))
        assert example.answer is not None
        own = model.tokenizer.decode(example.target[slice(*example.answer)])
        assert own.strip() in (answer, f"({answer})")
        before = model.tokenizer.decode(example.target[: example.answer[0]])
        assert before.rstrip().rstrip("(").rstrip().endswith("The answer is")


@pytest.mark.parametrize("prompt", SHIPPED)
@pytest.mark.parametrize("which", ["tiny_model_folder", "other_model_folder"])
def test_the_answers_own_tokens_are_the_fewest_that_hold_it(builder, which, prompt, request):
    """In every kind and shipped prompt. A teacher's scored part begins with them, and so without "The answer is"."""
    model = loading.load(str(request.getfixturevalue(which)), name=which, device="cpu", dtype=torch.float32)
    decode = model.tokenizer.decode
    for kind, answer in ANSWERS:
        build, bare = builder(kind, backbone=model, prompt=prompt), KINDS[kind].in_box(answer)
        choices = ("this", "that") if kind == "choice" else ()
        question = Question("q", "Which?", answer, choices=choices, rationale=("We begin.", "Then more."))
        statement = build.statement(question)
        for text in (build.solution(question), statement):
            example = build(question, text)
            assert example.answer is not None, (kind, text)
            first, end = example.answer
            own = example.target[first:end]
            assert bare in decode(own), (kind, text)
            fewer = (own[1:], own[:-1], example.target[end:])
            assert not any(bare in decode(tokens) for tokens in fewer), (kind, text)
        [taught] = examples_of("teacher", [question], {"q": [f"We begin. {statement}"]}, build)
        assert (taught.given, "The answer" in decode(taught.scored)) == (taught.answer[0], False), (kind, statement)


def test_an_answer_that_ends_within_a_token_has_this_token(builder, tiny_model_folder, tmp_path):
    """Vocabularies have tokens such as "}}", of an answer and of the box around it."""
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    last = merges.pop()
    vocabulary["}}"] = vocabulary.pop("".join(last))
    merges.append(["}", "}"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model = loading.load(str(folder), name="edited", device="cpu", dtype=torch.float32)
    build = builder("expression", backbone=model, prompt="boxed")
    question = Question("q", "Which?", "\\frac{\\sqrt{3}}{2}")
    example = build(question, build.statement(question))
    assert model.tokenizer.decode(example.target[slice(*example.answer)]) == "\\frac{\\sqrt{3}}{2}}"


# ---- teachers


def test_a_teacher_reads_question_and_chain_and_predicts_the_same_tokens(builder, model):
    """It is asked as in a chain of thought. The student reads no chain: after its thoughts come the words of the answer."""
    build = builder()
    [example] = examples_of("teacher", [QUESTION], {"q": ["It is 14.", CHAIN, "Another one. 14."]}, build)
    decode = model.tokenizer.decode
    asked = ChainOfThought(model, task=PlainTask("number")).asked(QUESTION).prompt
    assert decode(example.target) == "The answer is 14.<|im_end|>"
    assert decode(example.target[: example.given]).strip() == "The answer is"
    assert decode(example.scored).strip() == "14.<|im_end|>"
    assert decode((*example.reference, *example.scored)) == f"{asked}Both are 7. The answer is 14.<|im_end|>"
    assert (example.prefix, example.suffix) == (lambda e: (e.prefix, e.suffix))(build(QUESTION, "x")), "one question"


@pytest.mark.parametrize(
    ("kind", "answer", "chain"),
    [
        ("number", "1234", "Sum both. 1000 + 234 = 1,234. So the total is 1,234. The answer is 1,234."),
        ("choice", "B", "Sum both. It is blue, so it is B. The answer is B."),
        ("yes_no", "yes", "Sum both. Yes, it is. The answer is yes."),
        ("expression", "0.5", "Sum both. Thus x is \\frac{1}{2}. The answer is $\\boxed{\\frac{1}{2}}$."),
        ("text", "st louis", "Sum both. It is St. Louis. The answer is St. Louis."),
        ("set", "3, red", "Sum both. They are red and 3. The answer is red and 3."),
    ],
)
def test_a_teacher_reads_the_answer_in_no_spelling(builder, model, kind, answer, chain):
    """What it has read is the question, the step before the answer, and the words that lead to the answer."""
    build = builder(kind)
    question = Question("q", "Which?", answer, choices=("red", "blue") if kind == "choice" else ())
    [example] = examples_of("teacher", [question], {"q": [chain]}, build)
    read = model.tokenizer.decode((*example.reference, *example.scored))
    asked = ChainOfThought(model, task=PlainTask(kind)).asked(question).prompt
    assert read == f"{asked}Sum both. {build.statement(question)}<|im_end|>"


def test_a_chain_whose_answer_is_not_found_teaches_nothing(builder):
    assert examples_of("teacher", [QUESTION], {"q": ["Both are 7. I do not know."]}, builder()) == []


def test_a_chain_with_nothing_left_teaches_nothing(builder):
    assert examples_of("teacher", [QUESTION], {"q": ["The answer is 14.", "7 + 7 = 14"]}, builder()) == []


def test_a_teacher_that_reads_too_much_is_refused(builder):
    with pytest.raises(UsageError, match="context"):
        examples_of("teacher", [QUESTION], {"q": [f"{'word ' * 600}. The answer is 14."]}, builder())


# ---- whole trainings


@pytest.mark.usefixtures("own_chains")
def test_a_mixture_is_learned_from_and_resumes(settings, tmp_path):
    mixture = "first-step:2,answer,teacher:0.5"
    whole = train(settings(targets=mixture, out=tmp_path / "whole"), watcher := Quiet(), Processes())
    split = split_of(settings().resolved())
    task = split.task.definition
    counts = [
        2 * len(part) + sum(bool(before_answer(task.solution(question), question, task)) for question in part)
        for part in (split.train, split.validation)
    ]
    assert "{} targets to learn from, {} to validate on".format(*counts) in watcher.said
    with pytest.raises(Interrupted):
        train(settings(targets=mixture), Quiet(stop_at=3), Processes())
    again = train(settings(targets="answer:1,teacher:.5,first-step:2", resume=True), Quiet(), Processes())
    assert again.health == whole.health
    assert json.loads((whole.folder / "train.json").read_text())["targets"] == "answer,first-step:2,teacher:0.5"
    health = watcher.healths[0]
    assert health.per_question is not None
    assert len(health.per_question.ids) == 3, "a question with three targets is one question"
    assert health.answer is not None
    with pytest.raises(UsageError, match=r"`--targets` was 'answer,first-step:2,teacher:0.5', now 'answer'"):
        train(settings(targets="answer", resume=True), Quiet(), Processes())


@pytest.mark.usefixtures("own_chains")
@pytest.mark.parametrize("targets", ["gold", "self"])
def test_what_is_learned_from_as_before_is_written_as_before(settings, targets):
    result = train(settings(targets=targets), watcher := Quiet(), Processes())
    assert json.loads((result.folder / "train.json").read_text())["targets"] == targets
    assert "6 targets to learn from, 3 to validate on" in watcher.said


@pytest.mark.usefixtures("own_chains")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": "gold,first-step", "prompt": "direct"},
            "no question has a first step .* or use `--targets answer`",
        ),
        ({"targets": "teacher", "difficulty": 1}, "no step before their answer, .* or use `--targets answer`"),
    ],
)
def test_a_kind_that_no_question_has_is_refused(settings, changes, message):
    with pytest.raises(UsageError, match=message):
        train(settings(**changes), Quiet(), Processes())


@pytest.mark.usefixtures("own_chains")
def test_an_adapter_learns_them_too_and_its_teacher_is_the_backbone_as_it_was(settings, model, builder):
    result = train_lora(settings(method="lora", targets="answer,teacher:2"), Quiet(), Processes())
    assert result.figures.answer is not None
    examples = examples_of("teacher", [QUESTION], {"q": [CHAIN]}, builder(num_slots=0))
    before = Reader(model.model).whole(examples).item()
    adapter = new_adapter(model, rank=4, seed=0)
    given_to = {"schedule": None, "keep": None, "watcher": None, "folder": None, "micro_batch": 8}
    trainer = LoraTrainer(train=examples, validation=examples, model=adapter, reader=Reader(model.model), **given_to)
    assert trainer.examine().loss * len(examples[0].scored) == pytest.approx(before, rel=1e-4)
    same = [
        type(each)(**{**vars(each), "reference": (*each.prefix, *each.target[: each.given])}) for each in examples
    ]  # its teacher reads what it reads
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    assert trainer.reader.whole(same).item() > 1e-3, "the teacher has the adapter, too"
    _, tokens = trainer.backward(same, step=0)
    assert tokens == len(examples[0].scored)
    assert all(parameter.grad is not None for parameter in trainer.trained())


# ---- how many questions are generated


@pytest.mark.parametrize(
    ("given_steps", "limit", "epochs"),
    [
        ({}, 1024, 1),
        ({"epochs": 2}, 1024, 2),
        ({"stage": "at-once"}, 2048, 1),
        ({"constant": "constants"}, 2048, 1),
        ({"method": "prompt-tuning"}, 2048, 1),
        ({"method": "refiner"}, 2048, 1),
        ({"method": "refiner", "stage": "constant,thoughts"}, 1024, 1),
        ({"max_steps": 100, "batch_size": 4}, 400, None),
        ({"max_steps": 1, "batch_size": 1}, 2, None),
        ({"limit": 512}, 512, 2),
        ({"limit": 512, "stage": "at-once"}, 512, 3),
        ({"limit": 512, "epochs": 2}, 512, 2),
        ({"limit": 512, "max_steps": 100}, 512, None),
    ],
    ids=str,
)
def test_generated_questions_are_new_for_every_step_unless_they_are_limited(given_steps, limit, epochs):
    """Two stages have about half as many steps each as one has."""
    config = TrainConfig(**given_steps).resolved()
    assert (config.limit, config.epochs) == (limit, epochs)
    assert config.resolved() == config, "resolved twice"


def test_questions_of_files_are_all_taken_three_times_or_twice_by_each_of_two_stages(tmp_path):
    row = {"id": "q", "question": "What is 1 + 1?", "answer": 2}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    for stage, epochs in (("at-once", 3), ("constant,thoughts", 2), (None, 2)):
        config = TrainConfig(data=tmp_path / "train.jsonl", stage=stage).resolved()
        assert (config.limit, config.epochs) == (None, epochs)


@pytest.mark.parametrize(("stage", "stages"), [("at-once", 1), ("constant,thoughts", 2)])
def test_each_stage_of_a_training_takes_each_generated_question_once(settings, stage, stages):
    watcher, taken = Quiet(), []
    original = run_module.Trainer.backward

    def backward(self, batch, *, step):
        taken.extend(example.question for example in batch)
        return original(self, batch, step=step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module.Trainer, "backward", backward)
        train(settings(limit=None, stage=stage), watcher, Processes())
    assert len(taken) == stages * 4 * 3
    for begin in range(0, len(taken), 4 * 3):
        assert set(taken[begin : begin + 4 * 3]) == set(taken)
    assert len(set(taken)) == 4 * 3
