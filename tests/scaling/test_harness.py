"""The toolkit as a model of the lm-evaluation-harness: its votes, its likelihoods, and whole tasks from a local file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scaling.records.errors import UsageError
from scaling.tasks.task import Task

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytestmark = [
    # of lm_eval and datasets themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed"),
]

WORDS = [("What is 2 and 3?", "5"), ("What is 4 and 4?", "8"), ("What is 1 and 6?", "7")]


def request(*arguments):
    return SimpleNamespace(args=arguments)


@pytest.fixture
def model(tiny_model_folder):
    """`model(**options)`: the tiny pair, unless told otherwise."""
    from scaling.harness.model import SoftCoTModel

    def make(**options):
        pair = {"backbone": str(tiny_model_folder), "assistant": str(tiny_model_folder), "device": "cpu"}
        pair["dtype"] = "float32"  # that of the reference, wherever the tests run
        return SoftCoTModel(**{**pair, "max_new_tokens": 12, **options})

    return make


@pytest.fixture
def says(monkeypatch, tiny_model_folder):
    """Chains with the given texts, by (path, sample), instead of the engine's."""
    from transformers import AutoTokenizer

    from scaling.engines.base import Generated
    from scaling.harness import model

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)

    def put(texts):
        def fake(grid, *_, read, **__):
            for question in grid.questions:
                for (path, number), text in reversed(list(texts.items())):
                    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                    prompt = SimpleNamespace(question_id=question.id, path=path)
                    asked = SimpleNamespace(prompt=prompt, sample=number, seed=0)
                    yield read(question, Generated(asked, ids, "end"))

        monkeypatch.setattr(model, "sample", fake)

    return put


def test_the_voted_answer_is_returned_not_the_first(model, says):
    own = model(latent_paths=2, samples=2)
    says({(0, 0): "The answer is 1", (0, 1): "The answer is 2", (1, 0): "So it is 2", (1, 1): "I say 3"})
    [text] = own.generate_until([request("What?", {"until": ["\n"]})])
    assert text == "The answer is 2"


@pytest.mark.parametrize(("voter", "answer"), [("flat", "7"), ("hierarchical", "5")])
def test_the_voter_that_is_asked_for_votes(model, says, voter, answer):
    # five of nine chains say 7, and two of three paths 5
    rows = ["557", "557", "777"]
    says({(path, number): f"The answer is {said}" for path, row in enumerate(rows) for number, said in enumerate(row)})
    own = model(latent_paths=3, samples=3, voter=voter)
    assert own.generate_until([request("What?", {})]) == [f"The answer is {answer}"]


def test_equal_answers_are_voted_on_together(model, says):
    own = model(latent_paths=1, samples=5)
    said = ["13", "13", "0.33", "1/3", "0.333"]
    says({(0, number): f"The answer is {answer}" for number, answer in enumerate(said)})
    assert own.generate_until([request("What?", {})]) == ["The answer is 0.33"]  # the first that gave the voted answer


def test_copies_of_a_context_are_drawn_apart(model):
    own = model(latent_paths=1, samples=1, temperature=1.0)
    first, second = own.generate_until([request(WORDS[0][0], {})] * 2)  # the harness repeats the object
    assert first != second
    assert own.generate_until([request(WORDS[0][0], {})]) == [first]


def test_without_any_answer_the_first_chain_is_returned(model, says):
    own = model(latent_paths=1, samples=2)
    says({(0, 0): "who knows", (0, 1): "not me"})
    assert own.generate_until([request("What?", {})]) == ["who knows"]


def test_a_chain_that_cannot_be_read_has_no_vote(model, says, monkeypatch):
    def fails(task, text, question):
        return 1 / 0 if "1/2/3/4/0" in text else read(task, text, question)

    read = Task.read
    monkeypatch.setattr(Task, "read", fails)
    says({(0, 0): "The answer is 1/2/3/4/0", (0, 1): "The answer is 6"})
    assert model(latent_paths=1, samples=2).generate_until([request("What?", {})]) == ["The answer is 6"]


def test_a_text_ends_before_the_first_stop(model, says):
    own = model(latent_paths=1, samples=1)
    says({(0, 0): "It is 4. The answer is 4. Question: next"})
    assert own.generate_until([request("What?", {"until": ["Question:", "."]})]) == ["It is 4"]


def test_what_stands_behind_a_stop_has_no_vote(model, says):
    own = model(latent_paths=1, samples=3)
    says({(0, 0): "It is 4.\nNext: 9", (0, 1): "It is 9.", (0, 2): "It is 4.\nNext: 9"})
    assert own.generate_until([request("What?", {"until": "\n"})]) == ["It is 4."]


@pytest.mark.parametrize(("given", "expected"), [({}, [700, 2, 512]), ({"max_new_tokens": 12}, [12, 2, 12])])
def test_only_a_limit_that_is_given_cuts_a_tasks_length(tiny_model_folder, given, expected):
    from scaling.harness.model import SoftCoTModel

    own = SoftCoTModel(method="cot", backbone=str(tiny_model_folder), device="cpu", **given)
    assert [own._longest(task) for task in ({"max_gen_toks": 700}, {"max_new_tokens": 2}, {})] == expected


def test_a_letter_may_be_one_of_ten(model, says):
    own = model(latent_paths=1, samples=3, kind="choice")
    says({(0, 0): "The answer is (A).", (0, 1): "The answer is (J).", (0, 2): "The answer is J."})
    assert own.generate_until([request("Which?", {})]) == ["The answer is (J)."]


def test_a_context_has_its_own_randomness_whatever_else_is_asked(model):
    own = model(latent_paths=2, samples=1, temperature=1.0)
    arguments = {"until": [], "max_gen_toks": 6}
    alone = own.generate_until([request(WORDS[1][0], arguments)])
    among = own.generate_until([request(text, arguments) for text, _ in WORDS])
    assert among[1:2] == alone
    assert (
        model(latent_paths=2, samples=1, temperature=1.0, seed=1).generate_until([request(WORDS[1][0], arguments)])
        != alone
    )


def test_the_tasks_limit_bounds_the_length(model):
    own = model(latent_paths=1, samples=1, temperature=1.0)
    short, long = (own.generate_until([request("What?", {"until": [], "max_gen_toks": n})])[0] for n in (2, 12))
    assert long.startswith(short)
    assert len(short) < len(long)
    lengths = [own._longest(given) for given in ({"max_gen_toks": 2}, {"max_new_tokens": 50}, {})]
    assert lengths == [2, 12, 12]  # the model's own is 12


def reference(own, context, continuation):
    """The mean over paths of the continuation's probability by one full forward pass a path, as a log, and every path's
    log-probabilities of all tokens at each place, [T, V]."""
    from scaling.harness.model import _question

    backbone = own._backbone
    ids = backbone.tokenizer(continuation.lstrip(), add_special_tokens=False)["input_ids"]
    embed = backbone.model.get_input_embeddings()
    totals, steps = [], []
    for prompt in own._method.prompts(_question(context), range(own.config.latent_paths)):
        before, after = torch.tensor(prompt.prefix), torch.tensor((*prompt.suffix, *ids), dtype=torch.long)
        with torch.no_grad():
            rows = torch.cat([embed(before), prompt.thoughts, embed(after)])[None]
            logits = backbone.model(inputs_embeds=rows).logits[0, -len(ids) - 1 : -1].double()
        steps.append(logits.log_softmax(-1))
        totals.append(steps[-1][range(len(ids)), ids].sum().exp())
    return float(torch.stack(totals).mean().log()), steps


ASKED = [("What is it?", " a small thing"), ("What is it?", " 4"), ("And", " a")]


@pytest.mark.parametrize(
    "options", [{"method": "cot", "latent_paths": 1}, {"latent_paths": 3}, {"latent_paths": 2, "control": "zero"}]
)
def test_a_likelihood_is_the_mean_over_paths_of_full_forward_passes(model, options):
    own = model(**options)
    found = own.loglikelihood([request(*one) for one in ASKED])
    assert [value for value, _ in found] == pytest.approx([reference(own, *one)[0] for one in ASKED], abs=1e-3)


def test_greedy_is_what_the_mixture_would_say(model):
    from scaling.harness.model import _question

    own = model(latent_paths=3)
    steps = torch.stack(reference(own, "What?", " a")[1])[:, 0]  # [N, V]
    best = int(steps.exp().mean(0).argmax())
    prompts = own._method.prompts(_question("What?"), range(3))
    assert own._likelihood(prompts, [best])[1]
    assert not own._likelihood(prompts, [(best + 1) % 50])[1]


def test_many_paths_are_scored_in_parts(model, monkeypatch):
    from scaling.harness import model as module

    own = model(latent_paths=5)
    whole = own.loglikelihood([request("What?", " a b c")])
    monkeypatch.setattr(module, "_ROWS", 2)
    assert own.loglikelihood([request("What?", " a b c")])[0][0] == pytest.approx(whole[0][0], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latent_path": 8}, "has no `latent_path`. Did you mean `latent_paths`"),
        ({"task": "gsm8k"}, "`task` is the harness's to decide"),
        ({"overlap": "drop"}, "`overlap` is the harness's to decide"),
        ({"kind": "word"}, "`kind` is 'word': choose one of number, choice, yes_no"),
        ({"method": "assist-cot"}, "`method=assist-cot` is made from all questions"),
        ({"control": "shuffled"}, "`control=shuffled` is made from all questions"),
        ({"max_batch_size": 4}, "`--max_batch_size` has no meaning here"),
        ({"samples": 0}, "`--samples` is 0"),
        ({"adapter": "somewhere"}, "`--adapter`"),
    ],
)
def test_what_a_user_can_fix(model, options, said):
    with pytest.raises(UsageError) as error:
        model(**options)
    assert said in str(error.value)


def test_a_tasks_arguments_are_taken_or_refused(model):
    own = model(method="cot")
    for arguments in ({"num_beams": 4}, {"repetition_penalty": 1.2}):
        with pytest.raises(UsageError, match="has no meaning here: leave it out"):
            own.generate_until([request("What?", arguments)])


def test_the_harness_arguments_give_way_to_the_models(tiny_model_folder):
    from scaling.harness.model import SoftCoTModel

    text = f"method=cot,backbone={tiny_model_folder},device=cpu,samples=2"
    own = SoftCoTModel.create_from_arg_string(text, {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"})
    assert (own.config.device, own.config.batch_size, own.config.samples) == ("cpu", "auto", 2)
    own = SoftCoTModel.create_from_arg_string(
        f"method=cot,backbone={tiny_model_folder}", {"batch_size": 3, "device": "cpu"}
    )
    assert own.config.batch_size == 3
    info = own.get_model_info()["softcotpp"]
    assert (info["method"], info["kind"]) == ("cot", "number")
    assert info["backbone_fingerprint"] == own._backbone.fingerprint


def test_a_prompt_that_does_not_fit(model):
    with pytest.raises(UsageError, match="more than the backbone's context of"):
        model(method="cot").generate_until([request("word " * 5000, {})])


def test_perplexity_of_texts_and_chat_templates_are_refused(model):
    own = model(method="cot")
    with pytest.raises(UsageError, match="there is no question to think about"):
        own.loglikelihood_rolling([request("A text.")])
    with pytest.raises(UsageError, match="leave `--apply_chat_template` out"):
        own.chat_template(True)


def test_a_missing_package_is_said_in_a_sentence():
    hidden = "import sys, runpy; sys.modules['lm_eval'] = None; sys.argv = ['x', '--tasks', 'y']; "
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden} runpy.run_module('scaling.harness', run_name='__main__')"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert 'pip install "softcotpp[lm-eval]"' in done.stderr


# ---- whole tasks


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """`evaluate(lm, **task)`: the harness's own evaluation of a task over a local file."""
    import yaml

    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = [{"question": text, "answer": answer, "options": ["5", "8", "7"]} for text, answer in WORDS]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(lm, **task):
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        common = {
            **{"task": "words", "dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}"},
            "dataset_kwargs": {
                "data_files": {"test": str(tmp_path / "test.jsonl")},
                "cache_dir": str(tmp_path / "cache"),
            },
        }
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / "words.yaml").write_text(yaml.safe_dump(common | task))
        manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
        found = simple_evaluate(lm, tasks=["words"], task_manager=manager, bootstrap_iters=0, log_samples=True)
        return found["results"]["words"], found["samples"]["words"]

    return run


LAST_NUMBER = {"function": "regex", "regex_pattern": "([0-9]+)[^0-9]*$"}


def test_a_task_of_generated_answers_counts_the_votes(model, says, evaluate):
    own = model(latent_paths=1, samples=3)
    says({(0, 0): "The answer is 9", (0, 1): "The answer is 8", (0, 2): "it is 8"})
    results, samples = evaluate(
        own,
        output_type="generate_until",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n"]},
        filter_list=[
            {
                "name": "last",
                "filter": [{"function": "regex", "regex_pattern": "([0-9]+)[^0-9]*$"}, {"function": "take_first"}],
            }
        ],
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    assert results["exact_match,last"] == pytest.approx(1 / 3)  # 8 is right once
    assert {one["filtered_resps"][0] for one in samples} == {"8"}


def test_a_task_of_choices_takes_the_likeliest(model, evaluate):
    own = model(latent_paths=2)
    results, samples = evaluate(
        own,
        output_type="multiple_choice",
        doc_to_choice="{{options}}",
        doc_to_target="{{options.index(answer)}}",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    right = 0
    for text, answer in WORDS:
        values = [reference(own, text, f" {option}")[0] for option in ("5", "8", "7")]
        right += ["5", "8", "7"][max(range(3), key=values.__getitem__)] == answer
    assert len(samples) == 3
    assert results["acc,none"] == pytest.approx(right / 3)
