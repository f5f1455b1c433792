"""How the backbone is asked: templates, the options that replace parts of them, and what they do to the token ids."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment
from transformers import AutoTokenizer
from typer.testing import CliRunner

from scaling.cli import app
from scaling.config import RunConfig, load_config
from scaling.engines.base import Generated, Request, SoftPrompt
from scaling.models import loading
from scaling.preview import preview
from scaling.prompts import SLOT, PromptBuilder, continuation
from scaling.reading import after_thought, reader
from scaling.records.errors import WARNING, UsageError
from scaling.records.journal import config_hash, load, load_questions
from scaling.records.records import Question
from scaling.rescore import rescore
from scaling.run import begin, described_by, execute, prepare
from scaling.tasks.catalogue import TASKS, load_task
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.kinds import KINDS
from scaling.tasks.task import PlainTask, Task
from scaling.training.config import TrainConfig
from scaling.training.hint import command_for
from scaling.training.targets import ExampleBuilder
from scaling.wording import CONTENT, SHIPPED, Wording, wording_of

ROOM = Path(__file__).parents[2] / "scaling"
QUESTIONS = {
    "number": Question("n", "What is 3 and 4?", "-7", rationale=("3 + 4 = 7.", "Its negative is -7.")),
    "choice": Question("c", "Which one?", "B", choices=("this", "that"), rationale=("That one.",)),
    "yes_no": Question("y", "Is it?", "no", rationale=("It is not.",)),
    "text": Question("t", "Which town?", "paris", rationale=("It is in France.",)),
    "set": Question("s", "Which two?", "3, red", rationale=("These two.",)),
    "expression": Question("e", "How much is it?", "1/7", rationale=("It is 2/14.",)),
}
CHECKER = AnswerChecker()
NUMBER = PlainTask("number")
HEADER = "<|im_start|>assistant\n"
QWEN = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
PLAIN, WORDINGS = Wording(), {prompt: Wording(prompt) for prompt in SHIPPED}  # each reads its template once
every = pytest.mark.parametrize("prompt", SHIPPED)


@pytest.fixture
def chat(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture
def bare(other_model_folder):
    """Without a chat format."""
    return AutoTokenizer.from_pretrained(other_model_folder)


@pytest.fixture
def template(tmp_path):
    """`template(text)`: the path of a file with this template, which extends `plain`."""

    def write(text: str, begin: str = '{% extends "plain" %}\n', name: str = "mine.jinja") -> str:
        (tmp_path / name).write_text(begin + text)
        return str(tmp_path / name)

    return write


def refusal(prompt: str, task: Task = NUMBER, slots: str = "", **options: str) -> str:
    with pytest.raises(UsageError) as caught:
        Wording(prompt, **options).turns(QUESTIONS["number"], task=task, slots=slots)
    return str(caught.value)


def asked(tokenizer, wording: Wording, *, task: Task = NUMBER, num_slots: int = 2, shots=()):
    """The text of a prompt, once it is seen that the ids say the same."""
    prompt = PromptBuilder(tokenizer, task=task, wording=wording, exemplars=shots).backbone(
        QUESTIONS[task.answers.name], num_slots=num_slots
    )
    slots = [tokenizer.convert_tokens_to_ids(SLOT)] * num_slots
    assert tokenizer.decode([*prompt.prefix, *slots, *prompt.suffix]) == prompt.text
    return prompt.text


# ---- shipped templates


@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.parametrize("slots", ["", SLOT * 3, "Notes {{ 7 * 7 }}"])
@pytest.mark.parametrize("own", [{}, {"request": "Say it."}, {"request": ""}, {"hint_first": True}])
def test_plain_is_the_prompt_of_version_0_1(kind, slots, own):
    task = PlainTask(kind)
    vars(task).update(own)
    question = QUESTIONS[kind]
    hint = f"Notes from a quick first look, which may help or be ignored: <notes>{slots}</notes>" if slots else ""
    request = own.get("request", KINDS[kind].request)
    first = own.get("hint_first", kind == "yes_no")
    parts = [task.text(question), *([hint, request] if first else [request, hint])]
    assert Wording().turns(question, task=task, slots=slots) == ("", "\n\n".join(filter(None, parts)), "")
    assert Wording().solution(question, task=task) == task.solution(question)


@settings(max_examples=40)
@given(text=st.text(min_size=1), rationale=st.lists(st.text(), max_size=3))
def test_no_question_changes_plain(text, rationale):
    question = Question("q", text, "5", rationale=tuple(rationale))
    user = PLAIN.turns(question, task=NUMBER, slots=SLOT).user
    assert user.startswith(f"{text}\n\n{NUMBER.asks(question)}\n\nNotes")
    assert user.endswith(f"<notes>{SLOT}</notes>")
    assert PLAIN.solution(question, task=NUMBER) == NUMBER.solution(question)


@every
@settings(max_examples=25)
@given(text=st.text(alphabet="{}%#- \nabc7*_.", min_size=1))
def test_what_looks_like_a_template_in_data_is_text(prompt, text):
    question = Question("q", f"{text}{{{{ 7 * 7 }}}}{{% for %}}", "5", rationale=(text,))
    assert question.text in WORDINGS[prompt].turns(question, task=NUMBER, slots=SLOT).user
    assert prompt == "direct" or text in WORDINGS[prompt].solution(question, task=NUMBER)


@every
@pytest.mark.parametrize("kind", QUESTIONS)
def test_shipped_prompts_show_the_question_once_and_their_solutions_are_read(prompt, kind):
    task, question, wording = PlainTask(kind), QUESTIONS[kind], Wording(prompt)
    with_slots = wording.turns(question, task=task, slots=SLOT * 2).user
    without = wording.turns(question, task=task).user
    for text in (with_slots, without):
        assert text.count(task.text(question)) == 1
        assert text == text.strip()
        assert "\n\n\n" not in text
    assert (with_slots.count(SLOT * 2), without.count(SLOT)) == (1, 0)
    assert len(without) < len(with_slots)
    reading = task.read(wording.solution(question, task=task), question)
    assert wording.solution(question, task=task).count("boxed") <= 1
    assert (reading.strict, reading.lenient) == (question.answer, question.answer)


def test_shipped_prompts_are_what_their_names_say():
    question = QUESTIONS["number"]
    boxed, direct, paper = (Wording(name) for name in ("boxed", "direct", "paper"))
    for wording in (boxed, paper):
        assert "\\boxed{}" in wording.turns(question, task=NUMBER).user
        assert wording.solution(question, task=NUMBER).endswith("The answer is \\boxed{-7}.")
    assert direct.solution(question, task=NUMBER) == "The answer is -7."
    steps = paper.solution(question, task=NUMBER)
    assert [steps.index(f"## Step {number}:\n{text}") >= 0 for number, text in enumerate(question.rationale, start=1)]
    text = paper.turns(QUESTIONS["yes_no"], task=PlainTask("yes_no"), slots=SLOT).user
    assert (
        text.index("Is it?") < text.index(SLOT) < text.index("Put yes or no" if "Put yes" in text else "put yes or no")
    )


def test_every_shipped_template_is_in_the_package():
    pattern = tomllib.loads((ROOM.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "scaling"
    ]
    files = [path.relative_to(ROOM).as_posix() for path in (ROOM / "prompt_templates").iterdir()]
    assert {"plain", "paper", "direct", "boxed"} == set(SHIPPED)
    assert all(any(fnmatch(file, one) for one in pattern) for file in files)


def of_task(name: str) -> tuple[Task, Question]:
    """A built-in task with a question. Those of the Hub get one that was written here, without a network."""
    task = TASKS[name]()
    if task.generated:
        return task, load_task(name, limit=1).questions[0]
    return task, QUESTIONS[task.answers.name]


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_keeps_its_meaning_on_every_task(name):
    task, question = of_task(name)
    asks = {prompt: wording.turns(question, task=task).user for prompt, wording in WORDINGS.items()}
    solved = {prompt: wording.solution(question, task=task) for prompt, wording in WORDINGS.items()}
    assert asks["plain"] == f"{task.text(question)}\n\n{task.asks(question)}"
    assert solved["plain"] == task.solution(question)
    assert len(set(asks.values())) == 4
    assert f"Without any explanation, answer with {task.ending}." in asks["direct"]
    assert solved["direct"] == f"The answer is {task.answers.written(question.answer)}."
    assert "step by step" in asks["paper"]
    assert solved["paper"].count("## Step") == len(question.rationale)
    for prompt in ("paper", "boxed"):
        assert f"ut {task.wanted or task.answers.wanted} in \\boxed{{}}." in asks[prompt]
        assert "\\boxed{" in solved[prompt]
    for solution in solved.values():
        assert task.equal(question, str(task.read(solution, question).strict), CHECKER)


@pytest.mark.parametrize("by", ["instruction", "request", "asks"])
@pytest.mark.parametrize("kind", ["number", "text"])
def test_a_prompt_adds_its_own_sentence_to_the_words_of_a_user(by, kind):
    words, question = "Think in French.", QUESTIONS[kind]
    task, options = PlainTask(kind), {"instruction": words} if by == "instruction" else {}
    if by != "instruction":
        setattr(task, by, words if by == "request" else lambda _: words)
    wordings = {prompt: Wording(prompt, **options) for prompt in SHIPPED}
    asks = {prompt: wording.turns(question, task=task).user for prompt, wording in wordings.items()}
    assert all(text.count(words) == 1 for text in asks.values())
    assert asks["plain"].endswith(f"\n\n{words}")
    assert asks["direct"].endswith(f"{words} Leave out any explanation, and give the answer alone.")
    assert f"{words} Solve the problem step by step." in asks["paper"]
    assert "\\boxed{}" in asks["paper"]
    assert asks["boxed"].endswith(f"{words} Put {task.answers.wanted} in \\boxed{{}}.")
    assert wordings["direct"].solution(question, task=task) == f"The answer is {question.answer}."
    for prompt in ("paper", "boxed"):
        assert wordings[prompt].solution(question, task=task).endswith(f"The answer is \\boxed{{{question.answer}}}.")


def test_a_form_of_the_answer_that_a_task_writes_itself_is_kept():
    class Brackets(Task):
        kind, request = "number", "Put it in [square brackets]."

        def solution(self, question: Question) -> str:
            return " ".join([*question.rationale, f"[{question.answer}]"])

    question = QUESTIONS["number"]
    asks = {prompt: wording.turns(question, task=Brackets()).user for prompt, wording in WORDINGS.items()}
    solved = {prompt: wording.solution(question, task=Brackets()) for prompt, wording in WORDINGS.items()}
    assert all(Brackets.request in text for text in asks.values())
    assert len(set(asks.values())) == 4
    assert ["\\boxed" in asks[prompt] for prompt in ("plain", "direct", "paper", "boxed")] == [
        False,
        False,
        False,
        True,
    ]
    assert solved["direct"] == "[-7]"
    assert solved["paper"].endswith("## Step 2:\nIts negative is -7.\n\n[-7]")


def test_no_prompt_tells_the_fact_that_only_the_assistant_reads(template):
    task, question = of_task("hidden-fact")
    every_text = "{% block user %}{{ text }}{{ question }}{{ slots }}{% endblock %}"
    for wording in (*WORDINGS.values(), Wording(template(every_text))):
        turns = wording.turns(question, task=task, slots="x")
        assert not re.search("[0-9]", " ".join(turns)), turns


# ---- own templates


def test_a_file_overrides_one_block(template):
    wording = Wording(
        template("{% block system %}\nBe {{ kind }}.\n{% endblock %}\n{% block answer %}So{% endblock %}")
    )
    turns = wording.turns(QUESTIONS["number"], task=NUMBER, slots=SLOT)
    plain = Wording().turns(QUESTIONS["number"], task=NUMBER, slots=SLOT)
    assert turns == ("Be number.", plain.user, "So")


def test_a_file_of_its_own_has_the_blocks_of_plain_beside(template):
    head = "{% block user %}\n{% if slots %}\n[{{ slots }}] {% endif %}\n"
    text = head + "{{ text }}{% for one in choices %} {{ one }}{% endfor %}\n{% endblock %}"
    wording, task = Wording(template(text, begin="")), PlainTask("choice")
    assert wording.turns(QUESTIONS["choice"], task=task, slots="x").user == "[x] Which one? this that"
    assert wording.solution(QUESTIONS["choice"], task=task) == task.solution(QUESTIONS["choice"])


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("{% block user %}\n{{ quesiton }}{% endblock %}", 3, "no variable `quesiton`.*`question`"),
        ("{% block user %}{{ answer }}{% endblock %}", 2, "tells the answer"),
        ("\n{% block user %}{{ question {% endblock %}", 3, "is no template"),
        ("{% block usre %}{% endblock %}", 2, "block `usre`.*`user`"),
        ("text", 2, "outside of its blocks.*block system.*--instruction"),
        ("{% set x = 1 %}", 2, "outside of its blocks"),
        ("{% block system %}\n{{ ''.__class__.__mro__ }}{% endblock %}", 3, "__class__.* unsafe"),
        ("{% block system %}\n\n{{ paragraphs.__globals__ }}{% endblock %}", 4, "__globals__.* unsafe"),
        ("{% block system %}{% for i in range(10 ** 9) %}x{% endfor %}{% endblock %}", 2, "Range too big"),
        ("{% block system %}{{ choices.append(1) }}{% endblock %}", 2, "unsafe"),
        ("{% block system %}{{ 1 / 0 }}{% endblock %}", 2, "division by zero"),
        ("{% block system %}{{ self.system() }}{% endblock %}", 2, "recursion"),
        ("{% block system %}{% include '/etc/hostname' %}{% endblock %}", 2, "includes another file"),
        ("{% block system %}{{ lipsum() }}{% endblock %}", 2, "no variable `lipsum`"),
        ("{% block system %}{{ [1, 2] | random }}{% endblock %}", 2, "No filter named 'random'"),
    ],
)
def test_a_fault_is_told_with_file_and_line(template, text, line, why):
    path = template(text)
    said = refusal(path)
    assert said.startswith(f"`--prompt {path}` line {line} ")
    assert re.search(why, said), said
    assert said.count(": correct it") == 1
    assert "\n" not in said


def test_what_is_no_template_is_told(template, tmp_path):
    assert "`paper`" in refusal("papper")
    assert "No such file" in refusal("there/is/none.jinja")
    assert "Is a directory" in refusal(str(tmp_path))
    (tmp_path / "latin").write_bytes(b"\xff\xfe\xfa")
    assert "not UTF-8" in refusal(str(tmp_path / "latin"))
    assert "no block `user`" in refusal(template("{% block system %}x{% endblock %}", begin=""))
    assert "may extend one of" in refusal(template("", begin='{% extends "/etc/hostname" %}'))
    assert "may extend one of" in refusal(template("", begin="{% extends text %}"))


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("{% block user %}{{ question }}{% endblock %}", "0 times there and 0"),
        ("{% block user %}{{ question }}{{ slots }}{{ slots }}{% endblock %}", "2 times there and 0"),
        ("{% block system %}{{ slots }}{% endblock %}", "1 times there and 1"),
    ],
)
def test_slots_stand_once_in_the_users_turn_where_there_are_any(template, text, times):
    path = template(text)
    assert times in refusal(path, slots=SLOT)
    assert Wording(path).turns(QUESTIONS["number"], task=NUMBER)  # a method without slots may use it


def test_a_template_without_slots_is_refused_before_a_model_is_loaded(template, config_of, monkeypatch, silent):
    path = template("{% block user %}{{ question }}{% endblock %}")
    monkeypatch.setattr(loading, "load_pair", None)
    monkeypatch.setattr(loading, "load", None)
    for method in ("softcot++", "cot-unk", "assist-cot"):
        sizes = {} if method == "softcot++" else {"latent_paths": 1}
        with pytest.raises(UsageError, match="must show `slots` once"):
            execute(config_of(method=method, prompt=path, **sizes), silent)


HIDES = [
    ("Solve it.", "number", "text of question n"),
    ("{{ text | replace('3', '4') }}", "number", "text of question n"),
    ("{{ text }}", "choice", "options of question c"),
    ("{{ text }} A {{ choices[0] }}", "choice", r"options of question c ('that')"),
]
SHOWS = [
    "{{ question | upper }}",
    "{% for one in choices %}{{ one }}\n{% endfor %}  {{ text | indent }}",
    "{{ text }} Is it {{ choices | join(' or ') }}?",
]


@pytest.mark.parametrize(("text", "kind", "what"), HIDES)
def test_a_template_that_hides_the_question_is_refused(template, text, kind, what):
    path = template(f"{{% block user %}}{text}{{% endblock %}}")
    with pytest.raises(UsageError) as caught:
        Wording(path).turns(QUESTIONS[kind], task=PlainTask(kind))
    assert str(caught.value).startswith(f"`--prompt {path}` does not show the {what}")


@pytest.mark.parametrize("text", SHOWS)
def test_a_template_may_show_the_question_in_its_own_form(template, text):
    assert Wording(template(f"{{% block user %}}{text}{{% endblock %}}")).turns(
        QUESTIONS["choice"], task=PlainTask("choice")
    )


def test_a_shipped_template_is_compiled_once_and_a_file_each_time(template, monkeypatch):
    """A sweep asks for the template of each point, and a user may edit a file meanwhile."""
    shipped = [Wording(), Wording("plain"), Wording("direct"), Wording(assistant_prompt="answer")]
    for wording in shipped:
        wording.check()
    compiled, compile_ = [], Environment.compile
    monkeypatch.setattr(Environment, "compile", lambda *given: compiled.append(given[1]) or compile_(*given))
    for wording in shipped:
        replace(wording).check()
    assert compiled == []
    for system in ("Be short.", "Be long."):
        wording = Wording(template(f"{{% block system %}}{system}{{% endblock %}}"))
        assert wording.turns(QUESTIONS["number"], task=NUMBER).system == system
    assert len(compiled) == 4, "the file and `plain`, both times"


def test_a_template_of_windows_begins_with_a_mark(template):
    text = "{% block request %}Say it.{% endblock %}"
    path = template(text)
    plain, turns = Wording(path).identity(), Wording(path).turns(QUESTIONS["number"], task=NUMBER)
    template(text, begin='\ufeff{% extends "plain" %}\n')
    assert (Wording(path).identity(), Wording(path).turns(QUESTIONS["number"], task=NUMBER)) == (plain, turns)


# ---- options


@pytest.mark.parametrize("form", ["turn", "refused", "left out", "none"])
def test_a_system_prompt_is_a_turn_or_the_first_paragraph(chat, bare, form):
    tokenizer = bare if form == "none" else chat
    chatml = chat.chat_template
    if form == "refused":
        chat.chat_template = REFUSES_SYSTEM + chatml
    if form == "left out":
        chat.chat_template = chatml.replace("in messages", "in messages if message['role'] != 'system'")
    plain = asked(tokenizer, Wording())
    text = asked(tokenizer, Wording(system_prompt="Be kind."))
    if form == "turn":
        assert text == f"<|im_start|>system\nBe kind.<|im_end|>\n{plain}"
    elif form == "none":
        assert text == f"Be kind.\n\n{plain}"
    else:
        assert text == plain.replace("<|im_start|>user\n", "<|im_start|>user\nBe kind.\n\n", 1)


def test_a_system_prompt_stands_before_solved_questions(chat):
    chat.chat_template = REFUSES_SYSTEM + chat.chat_template
    shots = [replace(QUESTIONS["number"], id="s", text="What is 1 and 1?")]
    text = asked(chat, Wording(system_prompt="Be kind."), shots=shots, num_slots=0)
    assert text.startswith("<|im_start|>user\nBe kind.\n\nWhat is 1 and 1?")
    assert text.count("Be kind.") == 1


@pytest.mark.parametrize("option", ["system_prompt", "prefill", "instruction"])
def test_what_options_say_is_text_and_no_control_token(chat, option):
    words = "Say <|im_end|> or <|im_start|>system"
    builder = PromptBuilder(chat, task=NUMBER, wording=Wording(**{option: words}))
    prompt = builder.backbone(QUESTIONS["number"], num_slots=1)
    harmless = PromptBuilder(chat, task=NUMBER, wording=Wording(**{option: "Say it"}))
    other = harmless.backbone(QUESTIONS["number"], num_slots=1)
    ends = chat.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    counts = [[(*one.prefix, *one.suffix).count(end) for end in ends] for one in (prompt, other)]
    assert counts[0] == counts[1]
    assert words in prompt.text


def test_an_instruction_replaces_the_request(chat):
    text = asked(chat, Wording(instruction="In French, please."))
    assert "In French, please." in text
    assert NUMBER.asks(QUESTIONS["number"]) not in text
    assert asked(chat, Wording("boxed", instruction="In French, please.")).count("\\boxed{}") == 1


def test_an_instruction_that_the_template_does_not_show_is_refused(template):
    said = refusal(template("{% block user %}{{ question }}{% endblock %}"), instruction="Be brief.")
    assert said.startswith("`--instruction` is not shown by")


@pytest.mark.parametrize("with_chat", [True, False])
def test_a_prefill_begins_the_answer(chat, bare, with_chat):
    tokenizer = chat if with_chat else bare
    between = "" if with_chat else " "
    assert asked(tokenizer, Wording(prefill="Well,")) == f"{asked(tokenizer, Wording())}{between}Well,"


def test_thinking_is_asked_of_a_template_that_knows_it(chat, bare):
    for tokenizer in (chat, bare):
        with pytest.raises(UsageError, match="`--thinking on` needs a model whose chat template knows"):
            PromptBuilder(tokenizer, task=NUMBER, wording=Wording(thinking="on"))
    chat.chat_template += QWEN
    assert asked(chat, Wording()).endswith(f"{HEADER}<think>\n\n</think>\n\n")
    assert asked(chat, Wording(thinking="on")).endswith(HEADER)
    with pytest.raises(UsageError, match="`--thinking on` has a thought before"):
        asked(chat, Wording(thinking="on", prefill="Well,"))


def test_solved_questions_are_turns_or_text(chat, bare):
    shots = [replace(QUESTIONS["number"], id=f"s{n}", text=f"What is {n} and 1?") for n in range(2)]
    solved = [(Wording().turns(shot, task=NUMBER).user, NUMBER.solution(shot)) for shot in shots]
    question = Wording().turns(QUESTIONS["number"], task=NUMBER).user
    turns = asked(chat, Wording(), shots=shots, num_slots=0)
    text = asked(chat, Wording(shot_format="text"), shots=shots, num_slots=0)
    assert turns.count("<|im_start|>user") == 3
    examples = "".join(f"Question: {asked_}\nAnswer: {said}\n\n" for asked_, said in solved)
    assert text == f"<|im_start|>user\n{examples}Question: {question}<|im_end|>\n{HEADER}"
    assert asked(bare, Wording(shot_format="text"), shots=shots, num_slots=0) == asked(
        bare, Wording(), shots=shots, num_slots=0
    )


def test_solved_answers_begin_as_the_models_own_does(chat):
    shots = [replace(QUESTIONS["number"], id="s")]
    text = asked(chat, Wording(prefill="3 + 4 = 7."), shots=shots, num_slots=0)
    assert f"{HEADER}{NUMBER.solution(shots[0])}<|im_end|>" in text
    assert f"{HEADER}Well, 3 + 4" in asked(chat, Wording(prefill="Well,"), shots=shots, num_slots=0)


@given(begun=st.text(), rest=st.text())
def test_a_continuation_completes_what_was_begun(begun, rest):
    assert begun + continuation(begun + rest, begun) == begun + rest


def test_the_assistant_reads_the_same_whatever_the_prompt(chat):
    plain = PromptBuilder(chat, task=NUMBER)
    other = PromptBuilder(chat, task=NUMBER, wording=Wording("paper", system_prompt="Be kind.", prefill="Well,"))
    question = QUESTIONS["number"]
    assert other.assistant(question) == plain.assistant(question)
    assert other.hint_request(question) == plain.hint_request(question)


# ---- reading


def generated(text, tokenizer=None, stop_reason="end"):
    request = Request(SoftPrompt("n", 0, (1,), torch.empty(0, 8), ()), 0, 11)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"] if tokenizer else []
    return Generated(request, tokens, stop_reason, text=None if tokenizer else text)


def equal(question, answer):
    return answer == question.answer


def test_a_completion_has_the_beginning_that_was_given(chat):
    read = reader(chat, NUMBER, equal=equal, wording=Wording(prefill="The answer is"))
    for given_ in (generated(" -7.", chat), generated(" -7.")):
        one = read(QUESTIONS["number"], given_)
        assert (one.text, one.answer_strict) == ("The answer is -7.", "-7")
    assert read(QUESTIONS["number"], generated(" -7.", chat)).num_tokens == len(chat(" -7.")["input_ids"])


@pytest.mark.parametrize(
    ("text", "stop", "strict", "lenient"),
    [
        ("<think>Is it 5? The answer is 5.</think>The answer is 6.", "end", "6", "6"),
        ("It is 5. The answer is 5.</think>\n\nThe answer is 6.", "end", "6", "6"),
        ("<think>a</think>The answer is 5.<think>b</think>The answer is 6.", "end", "6", "6"),
        ("<think>The answer is 5.", "length", None, "5"),
        ("The answer is 5. But", "length", None, "5"),
        ("<think>The answer is 5.", "end", None, "5"),
        ("The answer is 5.", "end", "5", "5"),
        ("<think>The answer is 5.</think>", "end", None, None),
    ],
)
def test_an_answer_is_read_after_the_last_thought(chat, text, stop, strict, lenient):
    one = reader(chat, NUMBER, equal=equal, wording=Wording(thinking="on"))(
        QUESTIONS["number"], generated(text, stop_reason=stop)
    )
    assert (one.answer_strict, one.answer, one.text) == (strict, lenient, text.strip())


def test_a_thought_is_not_cut_where_the_answer_is(chat):
    read = reader(chat, NUMBER, equal=equal, wording=Wording(thinking="on"), until=["\n\n"])
    one = read(QUESTIONS["number"], generated("<think>a\n\nb</think>\n\nThe answer is 6.\n\nThe answer is 7."))
    assert one.answer == "6"
    assert after_thought(one.text) == "The answer is 6."


# ---- runs


OPTIONS = {
    "prompt": "paper",
    "system_prompt": "Be kind.",
    "instruction": "Say it.",
    "prefill": "Well,",
}


def test_a_run_without_these_options_says_nothing_of_them():
    old = RunConfig(method="cot").resolved()
    for same in ({"prompt": "plain"}, {"thinking": "off"}, {"shots": 2, "shot_format": "turns"}):
        config = RunConfig(method="cot", **same).resolved()
        expected = RunConfig(method="cot", shots=same.get("shots", 0)).resolved()
        assert config == expected
    task = load_task("arithmetic", limit=1)
    known = json.loads((Path(__file__).parents[1] / "fixtures/runs-0.1/softcotpp/run.json").read_text())["config"]
    assert CONTENT not in described_by(old, task)
    assert not {key for key, value in described_by(old, task).items() if value is not None} & {*OPTIONS, "thinking"}
    assert config_hash({**known, **dict.fromkeys((*OPTIONS, "thinking", "shot_format"))}) == config_hash(known)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_makes_another_run(option):
    task = load_task("arithmetic", limit=1)
    plain, other = (
        described_by(RunConfig(method="cot", **own).resolved(), task) for own in ({}, {option: OPTIONS[option]})
    )
    assert config_hash(plain) != config_hash(other)


def test_an_edited_template_is_another_run_and_a_moved_one_is_not(template, tmp_path, config_of, silent):
    first = template("{% block request %}Say it.{% endblock %}")
    here = {"method": "cot", "latent_paths": 1, "out": tmp_path / "run"}
    execute(config_of(**here, prompt=first), silent)
    assert len(silent.completions) == 4
    execute(config_of(**here, prompt=template("{% block request %}Say it.{% endblock %}", name="moved.jinja")), silent)
    assert len(silent.completions) == 4
    with pytest.raises(UsageError, match="what `--prompt` holds"):
        execute(config_of(**here, prompt=template("{% block request %}Say that.{% endblock %}")), silent)


@pytest.mark.parametrize("yaml", ["thinking: on", "thinking: 'on'", "thinking: true"])
def test_on_is_a_word_in_yaml_too(tmp_path, yaml):
    (tmp_path / "a.yaml").write_text(yaml)
    assert load_config(tmp_path / "a.yaml", {}, RunConfig).thinking == "on"
    with pytest.raises(UsageError, match="`--thinking` is 'often'"):
        load_config(None, {"thinking": "often"}, RunConfig)


def test_a_format_of_solved_questions_needs_some():
    with pytest.raises(UsageError, match="`--shots` is 0"):
        RunConfig(method="cot", shot_format="text").resolved()


@pytest.mark.parametrize(
    ("prompt", "method"),
    [*((prompt, "softcot++") for prompt in SHIPPED), ("paper", "cot-unk"), ("boxed", "assist-cot"), ("direct", "cot")],
)
def test_what_is_shown_before_is_what_is_asked(tmp_path, monkeypatch, config_of, silent, prompt, method):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))
    sizes = {} if method == "softcot++" else {"latent_paths": 1}
    own = {"prompt": prompt, "system_prompt": "Be kind.", "prefill": "Well, I"}
    config = config_of(method=method, limit=1, **sizes, **own, out=tmp_path / "run")
    shown = preview(config)[1]
    execute(config, silent)
    (question,) = load_questions(tmp_path / "run")
    assert "Be kind." in question.prompt
    assert question.prompt.endswith("Well, I")
    begin, _, end = re.sub(r"<(notes|hints)>.*</(notes|hints)>", "\0", question.prompt, flags=re.DOTALL).partition("\0")
    assert begin in shown
    assert end in shown
    assert all(one.text.startswith("Well, I") for one in silent.completions)


@pytest.mark.parametrize("prompt", ["plain", "paper"])
def test_the_control_none_is_the_prompt_without_thoughts(config_of, silent, prompt):
    """The baseline of the same wording: the same tokens around the slots, and nothing in them."""
    own = {"prompt": prompt, "thinker": "untrained"}
    soft, control = (prepare(config_of(**own, **more), silent) for more in ({}, {"control": "none"}))
    question = soft.task.questions[0]
    one, other = soft.method.prompts(question, [0])[0], control.method.prompts(question, [0])[0]
    assert (one.prefix, one.suffix) == (other.prefix, other.suffix)
    assert (len(one.thoughts), len(other.thoughts)) == (soft.config.soft_tokens, 0)


def test_judged_anew_a_begun_answer_and_a_thought_read_the_same(
    tmp_path, config_of, silent, tiny_model_folder, monkeypatch
):
    chatml = AutoTokenizer.from_pretrained(tiny_model_folder).chat_template
    known = loading.load_tokenizer

    def with_thoughts(*args, **kwargs):
        tokenizer = known(*args, **kwargs)
        tokenizer.chat_template = chatml + QWEN
        return tokenizer

    monkeypatch.setattr(loading, "load_tokenizer", with_thoughts)
    for name, own in (("begun", {"prefill": "The answer is 4"}), ("thought", {"thinking": "on"})):
        execute(config_of(method="cot", latent_paths=1, **own, out=tmp_path / name), silent)
        before = [(one.key, one.text, one.answer, one.answer_strict) for one in load(tmp_path / name)[1]]
        rescore(RunConfig(out=tmp_path / name), lambda _: None)
        assert [(one.key, one.text, one.answer, one.answer_strict) for one in load(tmp_path / name)[1]] == before
        assert any(strict for *_, strict in before) == (name == "begun")


def test_the_command_takes_all_of_them(tiny_model_folder):
    given_ = [f"--{key.replace('_', '-')}={value}" for key, value in OPTIONS.items()]
    done = CliRunner().invoke(
        app, ["--dry-run", "--method", "cot", "--limit", "1", "--backbone", str(tiny_model_folder), *given_]
    )
    assert done.exit_code == 0, done.output
    assert "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nSay it." in done.output
    assert done.output.rstrip().endswith(f"{HEADER}Well,")


# ---- training


@every
@pytest.mark.parametrize("num_slots", [0, 3])
def test_a_training_reads_the_prompts_of_its_runs_and_learns_the_prompts_solution(tiny_model_folder, prompt, num_slots):
    source = str(tiny_model_folder)
    model = loading.load(source, name=source, device="cpu", dtype=torch.float32)
    wording = Wording(prompt, system_prompt="Be kind.")
    build = ExampleBuilder(model, None, task=NUMBER, num_slots=num_slots, wording=wording)
    question = QUESTIONS["number"]
    example = build(question, build.solution(question))
    run = PromptBuilder.of(model, task=NUMBER, wording=wording).backbone(question, num_slots=num_slots)
    assert (example.prefix, example.suffix) == (run.prefix, run.suffix)
    assert model.tokenizer.decode(example.target[:-1]) == wording.solution(question, task=NUMBER)


@pytest.mark.parametrize("folder", ["tiny_model_folder", "other_model_folder"])
@pytest.mark.parametrize("begun", ["3 + 4", "Well,", "Well, "])
def test_a_target_goes_on_where_the_prompt_ends(request, folder, begun):
    source = str(request.getfixturevalue(folder))
    model = loading.load(source, name=source, device="cpu", dtype=torch.float32)
    build = ExampleBuilder(model, None, task=NUMBER, num_slots=0, wording=Wording(prefill=begun))
    example = build(QUESTIONS["number"], build.solution(QUESTIONS["number"]))
    whole = model.tokenizer.decode([*example.prefix, *example.target[:-1]])
    solution = NUMBER.solution(QUESTIONS["number"])
    expected = solution if begun == "3 + 4" else f"Well, {solution}"
    assert whole.endswith(f"{HEADER if folder == 'tiny_model_folder' else 'Answer: '}{expected}")


def test_a_thought_has_no_gold_rationale():
    with pytest.raises(UsageError, match="`--targets self`"):
        TrainConfig(thinking="on").resolved()
    assert TrainConfig(thinking="on", targets="self").resolved().thinking == "on"


def test_a_training_hands_its_prompt_on(tmp_path):
    config = TrainConfig(prompt="boxed", system_prompt="Be kind.").resolved()
    assert command_for(config, tmp_path).endswith("--prompt boxed --system-prompt 'Be kind.'")
    assert wording_of(config) == Wording("boxed", system_prompt="Be kind.")


def test_a_run_with_another_prompt_than_the_thinkers_is_warned(template, make_checkpoint, config_of, silent):
    path = template("{% block request %}Say it.{% endblock %}")
    trained = Wording(path, prefill="Well,")
    place = make_checkpoint()
    file = place / "config.json"
    about = {"prompt_version": "1", "task": "arithmetic", "prompt": path, "prefill": "Well,", **trained.identity()}
    file.write_text(json.dumps({**json.loads(file.read_text()), "about": about}))

    def warned(**own):
        provenance = begin(config_of(thinker=str(place), **own))[-1]
        return " ".join(line for line in provenance.warnings() if "another prompt" in line)

    lines = []
    silent.status = lines.append
    prepare(config_of(thinker=str(place)), silent)
    assert [line for line in lines if "another prompt" in line] == [f"{WARNING}{warned()}"]
    assert "another prompt" in preview(config_of(thinker=str(place)))[1]

    assert not warned(prompt=path, prefill="Well,")
    assert "(`--prompt` mine.jinja there, plain here; `--prefill` Well, there, none here)" in warned()
    assert "; `--system-prompt` none there, Be kind. here" not in warned()
    assert "(`--system-prompt` none there, Be kind. here)" in warned(
        prompt=path, prefill="Well,", system_prompt="Be kind."
    )
    moved = template("{% block request %}Say it.{% endblock %}", name="moved.jinja")
    assert not warned(prompt=moved, prefill="Well,")
    template("{% block request %}Say that.{% endblock %}")
    assert "(edited since)" in warned(prompt=path, prefill="Well,")
