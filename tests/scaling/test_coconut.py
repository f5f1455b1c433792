"""Runs with latent steps: against a plain loop over whole sequences, their paths, controls, costs and checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from analysis.compute import compute
from analysis.load import load as load_for_report
from analysis.methods import group
from analysis.results import Settings, results
from analysis.tables import tables
from contrastive.forward import hidden_states
from scaling.cli import app
from scaling.config import DEFAULT_MODEL
from scaling.engines.base import Decoding, Request
from scaling.engines.local.engine import TransformersEngine
from scaling.methods.perturbations import rms
from scaling.models import adapters, loading
from scaling.preview import preview
from scaling.prompts import SLOT
from scaling.records.costs import RunCosts
from scaling.records.errors import UsageError
from scaling.records.names import called
from scaling.records.overlap import digests_of
from scaling.records.seeds import stream_seed
from scaling.run import execute, prepare
from scaling.training.adapter import save_adapter

BEGIN, END, PAUSE = TOKENS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")
STEPS = 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path, tiny_model_folder, other_model_folder):
    """`checkpoint(family, tokens, **about)`: a plain folder of a tiny model with tokens added, as a training leaves it."""

    def make(family="llama", tokens=TOKENS, *, name="checkpoint", resize=True, special=False, **about):
        source = {"llama": tiny_model_folder, "gpt2": other_model_folder}[family]
        folder = tmp_path / name
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.add_tokens(list(tokens), special_tokens=special)
        model = AutoModelForCausalLM.from_pretrained(source)
        if resize:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if about:
            (folder / "train.json").write_text(json.dumps(about))
        return folder

    return make


@pytest.fixture
def coconut(config_of, checkpoint):
    """`coconut(**changes)`: settings of a run of a checkpoint, one path."""

    def settings(*, backbone=None, **changes):
        standard = {"method": "coconut", "latent_paths": None, "latent_steps": STEPS}
        return config_of(**{**standard, **changes}, backbone=str(backbone or checkpoint()))

    return settings


@pytest.fixture
def made(coconut, silent):
    return lambda **changes: prepare(coconut(**changes), silent)


def thoughts_of(setup, number=0):
    paths = range(setup.config.num_paths)
    return torch.stack([one.thoughts for one in setup.method.prompts(setup.task.questions[number], paths)])


def plain_thoughts(model, prefix, steps):
    """Thoughts [n, D] by reading the whole sequence again at every step."""
    inputs, states = model.get_input_embeddings()(torch.tensor([prefix])), []
    with torch.no_grad():
        for _ in range(steps):
            states.append(hidden_states(model, inputs_embeds=inputs, use_cache=False)[:, -1:])
            inputs = torch.cat([inputs, states[-1]], dim=1)
    return torch.cat(states, dim=1)[0]


def plain_answer(model, prompt, thoughts, most, ends):
    """Greedy tokens after thoughts [n, D], nothing kept between two tokens: all of it is read again."""
    embed = model.get_input_embeddings()
    tokens = []
    with torch.no_grad():
        parts = embed(torch.tensor([prompt.prefix])), thoughts[None], embed(torch.tensor([prompt.suffix]))
        inputs = torch.cat(parts, dim=1)
        while len(tokens) < most and not (tokens and tokens[-1] in ends):
            tokens.append(int(model(inputs_embeds=inputs, use_cache=False).logits[0, -1].argmax()))
            inputs = torch.cat([inputs, embed(torch.tensor([[tokens[-1]]]))], dim=1)
    return tokens


# ---- what is computed


@pytest.mark.parametrize("paths", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_is_that_of_a_plain_loop_token_by_token(made, checkpoint, family, paths):
    """All questions at once with keys that paths share, one row at a time, and a loop that keeps nothing."""
    noise = {"latent_paths": paths, "noise": 2.0} if paths > 1 else {}
    setup = made(backbone=checkpoint(family), limit=5, samples=1, temperature=0.0, **noise)
    model = setup.backbone.model
    prompts = [prompt for one in setup.task.questions for prompt in setup.method.prompts(one, range(paths))]
    assert len({len(prompt) for prompt in prompts}) > 1, "no padding would be tested"
    decoding = Decoding(0.0, 1.0, 0, 12)

    def generated(rows):
        engine = TransformersEngine(
            model, end_tokens=setup.backbone.end_tokens, batch_size=rows, max_batch_tokens=10_000
        )
        asked = [Request(prompt, 0, stream_seed(0, prompt.question_id, 0, 0)) for prompt in prompts]
        found = {id(one.request.prompt): one.tokens for one in engine.generate(asked, decoding)}
        return [found[id(prompt)] for prompt in prompts]

    expected = []
    for prompt in prompts:
        thoughts = prompt.thoughts if noise else plain_thoughts(model, prompt.prefix, STEPS)
        expected.append(plain_answer(model, prompt, thoughts, 12, setup.backbone.end_tokens))
    assert len({tuple(tokens) for tokens in expected}) > 1
    of_questions = [expected[at : at + paths] for at in range(0, len(expected), paths)]
    assert paths == 1 or any(one != own[0] for own in of_questions for one in own), "no path is told from another"
    assert generated(len(prompts)) == generated(1) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_thought_is_the_last_state_of_what_was_read_before(made, checkpoint, family):
    setup = made(backbone=checkpoint(family), limit=5)
    for number, question in enumerate(setup.task.questions):
        (prompt,) = setup.method.prompts(question, [0])
        expected = plain_thoughts(setup.backbone.model, prompt.prefix, STEPS)
        torch.testing.assert_close(thoughts_of(setup, number)[0], expected, rtol=1e-4, atol=1e-4)


def test_the_prompt_is_cots_with_thoughts_between_their_tokens(made, checkpoint):
    folder = checkpoint()
    cot = made(backbone=folder, method="cot", latent_steps=None)
    setup = made(backbone=folder)
    begin, end, _ = setup.backbone.tokenizer.convert_tokens_to_ids(list(TOKENS))
    for question, asked in zip(setup.task.questions, setup.asked, strict=True):
        (prompt,), (plain,) = (one.method.prompts(question, [0]) for one in (setup, cot))
        assert prompt.prefix == (*plain.prefix, begin)
        assert prompt.suffix == (end,)
        assert (asked.prefix_tokens, asked.soft_tokens, asked.suffix_tokens) == (len(prompt.prefix), STEPS, 1)
        assert asked.prompt.endswith(f"{BEGIN}{SLOT * STEPS}{END}")


def test_steps_are_read_from_the_checkpoint_unless_given(made, checkpoint):
    folder = checkpoint(latent_steps=2, latent_tokens=f"{BEGIN} {END} {PAUSE}", thought="latent")
    assert made(backbone=folder, latent_steps=None).asked[0].soft_tokens == 2
    assert made(backbone=folder, latent_steps=4).asked[0].soft_tokens == 4
    assert made(backbone=folder, latent_steps=0).asked[0].soft_tokens == 0


def test_another_number_of_steps_than_was_trained_is_told(coconut, checkpoint, silent, monkeypatch):
    told = []
    monkeypatch.setattr(silent, "status", told.append)
    folder = checkpoint(latent_steps=2)
    prepare(coconut(backbone=folder, latent_steps=2), silent)
    assert not [text for text in told if "latent steps" in text]
    prepare(coconut(backbone=folder, latent_steps=5), silent)
    assert [text for text in told if "was trained with 2 latent steps, and this run has 5" in text]
    prepare(coconut(backbone=checkpoint(name="foreign")), silent)
    assert [text for text in told if "does not say how it was trained" in text]


@pytest.mark.parametrize("task", ["prosqa", "arithmetic"])
def test_a_backbone_that_was_trained_on_another_task_is_told(coconut, checkpoint, silent, monkeypatch, task, tmp_path):
    told, about = [], {"method": "coconut", "latent_steps": STEPS, "task": task, "backbone": "base"}
    monkeypatch.setattr(silent, "status", told.append)
    check = {"task": "held", "questions": 50, "before": 0.4, "after": 0.12, "p": 0.0013}
    folder = checkpoint(**about, **digests_of(task, (), ()), metrics={"check": check})
    execute(coconut(backbone=folder, latent_steps=None, limit=1, samples=1, out=tmp_path / "run"), silent)
    said = [text for text in told if f"the backbone {folder} was trained on {task}, and these questions" in text]
    assert bool(said) is (task == "prosqa")
    run = json.loads((tmp_path / "run" / "run.json").read_bytes())
    assert run["environment"]["backbone_trained_from"] == "base"
    assert run["environment"]["checked_elsewhere"] == (
        "right answers to held went from 40.0% before training to 12.0% after it (50 questions that were not trained on, "
        "exact McNemar p = 0.001)"
    )
    assert ("[trained on prosqa]" in called(run["config"], run["environment"])) is (task == "prosqa")
    told.clear()
    plain = coconut(method="cot", latent_steps=None, backbone=folder, limit=1, samples=1, out=tmp_path / "cot")
    execute(plain, silent)
    assert not [text for text in told if "was trained on" in text], "a whole model may well answer other questions"


def test_other_tokens_than_were_trained_are_told(coconut, checkpoint, silent, monkeypatch):
    told, own = [], f"{BEGIN} {END}"
    monkeypatch.setattr(silent, "status", told.append)
    folder = checkpoint(latent_steps=STEPS, latent_tokens=own)
    for tokens in (None, own, f"{own} {PAUSE}"):  # latent thoughts have no need of the third
        prepare(coconut(backbone=folder, latent_tokens=tokens), silent)
    prepare(coconut(backbone=checkpoint(name="silent", latent_steps=STEPS), latent_tokens=f"{END} {BEGIN}"), silent)
    assert not [text for text in told if "with the tokens" in text]
    prepare(coconut(backbone=folder, latent_tokens=f"{END} {BEGIN}"), silent)
    (said,) = [text for text in told if "with the tokens" in text]
    assert said.endswith(f"was trained with the tokens `{own}`, and this run has `{END} {BEGIN}`")


# ---- paths


@pytest.mark.parametrize("kind", ["gaussian", "dropout"])
def test_noisy_paths_differ_and_depend_on_nothing_but_seed_question_path_and_step(made, kind):
    noisy = {"noise": 0.3, "noise_kind": kind}
    four = made(latent_paths=4, limit=3, **noisy)
    two = made(latent_paths=2, limit=1, **noisy)
    thoughts = [thoughts_of(four, number) for number in range(3)]
    torch.testing.assert_close(thoughts_of(two), thoughts[0][:2], rtol=1e-4, atol=1e-4)
    backwards = made(latent_paths=4, limit=3, **noisy)
    for number in (2, 1, 0):
        torch.testing.assert_close(thoughts_of(backwards, number), thoughts[number], rtol=1e-4, atol=1e-4)
    for path in range(1, 4):
        assert not torch.allclose(thoughts[0][0], thoughts[0][path])
    assert not torch.allclose(thoughts_of(made(latent_paths=4, limit=3, seed=1, **noisy)), thoughts[0])


def test_alone_and_exact_the_thoughts_of_a_path_are_the_same_bit_for_bit(made):
    noisy = {"noise": 0.3, "exact": True}
    four, one = made(latent_paths=4, limit=3, **noisy), made(latent_paths=1, limit=1, **noisy)
    assert torch.equal(thoughts_of(four)[:1], thoughts_of(one))


def test_without_noise_all_paths_are_the_one_of_coconut(made):
    single, several = made(), made(latent_paths=3, noise=0)
    assert torch.equal(thoughts_of(several), thoughts_of(single).expand(3, -1, -1))


@pytest.mark.parametrize("noise", [0.25, 1.0])
@pytest.mark.parametrize("kind", ["gaussian", "dropout"])
def test_every_thought_is_changed_by_the_asked_size_before_it_is_fed_back(made, kind, noise):
    """The first thought is the same state in all paths before noise; the second is what follows the changed first one."""
    number = 256
    setup = made(latent_paths=number, noise=noise, noise_kind=kind, limit=1, samples=1)
    (clean,) = thoughts_of(made(limit=1))
    found = thoughts_of(setup)
    changes = rms(found[:, 0] - clean[0]) / rms(clean[0])
    assert float(changes) == pytest.approx(noise, rel=0.2)
    # the noise of the second thought is drawn anew, around the state that follows the changed first thought
    prompt = setup.method.prompts(setup.task.questions[0], [0])[0]
    model = setup.backbone.model
    prefix = model.get_input_embeddings()(torch.tensor([prompt.prefix])).expand(number, -1, -1)
    with torch.no_grad():
        inputs = torch.cat([prefix, found[:, :1]], dim=1)
        before = hidden_states(model, inputs_embeds=inputs, use_cache=False)[:, -1]
    sizes = (found[:, 1] - before).pow(2).mean(-1).sqrt() / before.pow(2).mean(-1).sqrt()
    assert float(sizes.pow(2).mean().sqrt()) == pytest.approx(noise, rel=0.2)
    assert not torch.allclose(found[:, 1] - before, found[:, 0] - clean[0], atol=0.1 * noise)


def test_sampling_goes_on_and_grows(tmp_path, coconut, checkpoint, silent, lines_of):
    folder = checkpoint()
    noisy = {"backbone": folder, "latent_paths": 2, "noise": 0.3}
    execute(coconut(**noisy, out=tmp_path / "whole"), silent)
    whole = lines_of(tmp_path / "whole")
    execute(coconut(**noisy, out=tmp_path / "part", limit=1, samples=1), silent)
    part = lines_of(tmp_path / "part")
    assert len(part) == 2
    assert part.items() <= whole.items()
    execute(coconut(**noisy, out=tmp_path / "part"), silent)
    assert lines_of(tmp_path / "part") == whole
    assert (tmp_path / "whole" / "thoughts.jsonl").exists()


# ---- what takes the thoughts away


@pytest.mark.parametrize("control", ["zero", "mean", "shuffled", "counterfactual", "unk", "none"])
def test_a_control_replaces_the_thoughts_and_nothing_else(made, checkpoint, control):
    folder = checkpoint()
    own, other = made(backbone=folder), made(backbone=folder, control=control)
    for question in own.task.questions:
        (before,), (after,) = (setup.method.prompts(question, [0]) for setup in (own, other))
        assert (before.prefix, before.suffix) == (after.prefix, after.suffix)
    thoughts = thoughts_of(other)
    assert thoughts.shape == (1, 0 if control == "none" else STEPS, 32)
    assert control == "none" or not torch.equal(thoughts, thoughts_of(own))
    latent = control in ("shuffled", "counterfactual")
    assert other.method.costs().latent_steps(other.asked[0]) == (STEPS if latent else 0)


def test_shuffled_thoughts_are_the_next_questions(made, checkpoint):
    folder = checkpoint()
    shuffled, longer = made(backbone=folder, control="shuffled"), made(backbone=folder, limit=3)
    for number in range(2):
        torch.testing.assert_close(thoughts_of(shuffled, number), thoughts_of(longer, number + 1), rtol=1e-4, atol=1e-4)


def test_a_scale_of_thoughts_is_a_dose(made, checkpoint):
    folder = checkpoint()
    mean, none = made(backbone=folder, control="mean"), made(backbone=folder, thought_scale=0.0)
    torch.testing.assert_close(thoughts_of(none), thoughts_of(mean), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_that_pauses_reads_its_token_to_pause(made, checkpoint):
    setup = made(backbone=checkpoint(thought="pause", latent_steps=2), latent_steps=None)
    token = setup.backbone.tokenizer.convert_tokens_to_ids(PAUSE)
    (prompt,) = setup.method.prompts(setup.task.questions[0], [0])
    own = setup.backbone.model.get_input_embeddings().weight[token]
    assert torch.equal(prompt.thoughts, own.expand(2, -1))
    assert setup.method.costs().latent_steps(setup.asked[0]) == 0
    assert setup.method.latent_steps == 0


def test_a_checkpoint_without_thoughts_answers_as_cot_does(tmp_path, coconut, checkpoint, silent, lines_of):
    folder = checkpoint(thought="none")
    execute(coconut(backbone=folder, latent_steps=None, out=tmp_path / "none"), silent)
    execute(coconut(backbone=folder, latent_steps=None, method="cot", out=tmp_path / "cot"), silent)
    assert lines_of(tmp_path / "none") == lines_of(tmp_path / "cot")


# ---- costs and records


def test_steps_and_their_cost_are_counted(tmp_path, coconut, silent):
    """The question is read to think and to answer, each of n - 1 thoughts to compute the next, and all n to answer."""
    settings = coconut(latent_paths=2, noise=0.1, out=tmp_path / "run")
    summary = execute(settings, silent)
    assert summary["tokens"]["latent_steps"] == 2 * 2 * STEPS  # questions x paths x steps
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    costs = RunCosts.from_json(run["environment"]["costs"])
    one = load_for_report(tmp_path / "run")
    for asked in one.questions:
        prefix, backbone = asked.prefix_tokens, costs.backbone
        assert costs.question(asked) == 2 * backbone.forward(prefix)
        steps = sum(backbone.forward(1, behind=prefix + step) for step in range(STEPS - 1))
        assert costs.path(asked) == steps + backbone.forward(STEPS + 1, behind=prefix)
    found = compute(one)
    assert found.latent_steps == 2 * STEPS
    assert found.sequential == pytest.approx(STEPS + one.tokens.mean())
    (method,) = group([(None, one)], common=False)
    assert method.name == f"Coconut, {STEPS} latent steps"
    config = run["config"]
    assert (config["latent_steps"], config["noise"], config["noise_kind"]) == (STEPS, 0.1, "gaussian")
    assert (config["latent_tokens"], config["latent_thought"]) == (" ".join(TOKENS), "latent")


def test_other_methods_say_nothing_of_latent_steps(tmp_path, config_of, silent):
    summary = execute(config_of(method="cot", latent_paths=1, out=tmp_path / "run"), silent)
    assert "latent_steps" not in summary["tokens"]
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert {key: config.get(key) for key in ("latent_steps", "latent_tokens", "noise_kind", "latent_thought")} == (
        dict.fromkeys(("latent_steps", "latent_tokens", "noise_kind", "latent_thought"))
    )
    assert compute(load_for_report(tmp_path / "run")).latent_steps is None


def test_a_preview_shows_the_prompt_with_its_thoughts(made, coconut, checkpoint):
    folder = checkpoint(latent_steps=2)
    config = coconut(backbone=folder, latent_steps=None)
    settings, prompts = preview(config)
    assert settings["latent_steps"] == 2
    assert f"{BEGIN}[1][2]{END}" in prompts
    assert (
        f"{len(made(backbone=folder, latent_steps=None).method.prompts(made().task.questions[0], [0])[0])} tokens"
        in prompts
    )


# ---- adapters


@pytest.fixture
def trained_adapter(tmp_path, tiny_model_folder):
    """The folder of an adapter with rows of its own for three tokens, and the whole model that it makes of the backbone."""
    backbone = loading.load(str(tiny_model_folder), name="tiny", device="cpu", dtype=torch.float32, own=True)
    backbone.tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    backbone.model.resize_token_embeddings(len(backbone.tokenizer), mean_resizing=False)
    ids = backbone.tokenizer.convert_tokens_to_ids(list(TOKENS))
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", trainable_token_indices=ids)
    adapted = adapters.attach(backbone, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(adapted, folder, backbone=str(tiny_model_folder))
    backbone.tokenizer.save_pretrained(folder)
    (folder / "train.json").write_text(json.dumps({"thought": "latent", "latent_steps": 2}))
    return folder, adapters.merged(adapted, backbone).model


def test_an_adapter_brings_its_tokens_and_thinks_as_the_whole_model_does(made, trained_adapter, tiny_model_folder):
    folder, whole = trained_adapter
    setup = made(backbone=tiny_model_folder, adapter=folder, latent_steps=None)
    (prompt,) = setup.method.prompts(setup.task.questions[0], [0])
    torch.testing.assert_close(prompt.thoughts, plain_thoughts(whole, prompt.prefix, 2), rtol=1e-4, atol=1e-4)
    assert setup.method.identity().keys() >= {"adapter_sha256", "merged_fingerprint", "backbone_fingerprint"}
    shared = loading.load(str(tiny_model_folder), name="tiny", device="cpu", dtype=torch.float32)
    assert setup.method.identity()["backbone_fingerprint"] == shared.fingerprint


def test_a_run_with_an_adapter_goes_from_preview_to_report(
    tmp_path, coconut, trained_adapter, tiny_model_folder, silent
):
    settings = coconut(backbone=tiny_model_folder, adapter=trained_adapter[0], latent_steps=None, out=tmp_path / "run")
    assert f"{BEGIN}[1][2]{END}" in preview(settings)[1]
    execute(settings, silent)
    assert preview(settings)[0]["latent_steps"] == 2, "the run's own folder is taken"


# ---- checkpoints of others


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_published_folder_runs_by_the_names_of_its_tokens(tmp_path, coconut, checkpoint, family, silent):
    folder = checkpoint(family, ("<bot>", "<eot>"))
    execute(coconut(backbone=folder, latent_tokens="<bot> <eot>", out=tmp_path / "run"), silent)
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["latent_tokens"] == "<bot> <eot>"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_published_prompt_is_a_chat_template_in_the_folder_and_one_of_the_question_alone(
    made, checkpoint, family, tmp_path
):
    """docs/methods.md says so: the question, a new line, and the token that begins thoughts."""
    folder = checkpoint(family)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] + '\\n' }}")
    bare = tmp_path / "question.jinja"
    bare.write_text("{% block user %}\n{{ question }}\n{% endblock %}\n")
    setup = made(backbone=folder, prompt=bare)
    question, tokenizer = setup.task.questions[0], setup.backbone.tokenizer
    (prompt,) = setup.method.prompts(question, [0])
    assert prompt.prefix == tuple(tokenizer(f"{question.text}\n{BEGIN}", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("files", "changes", "said"),
    [
        (
            {},
            {"latent_steps": None},
            "`--method coconut` needs `--latent-steps`, as .*checkpoint does not say.*: add it",
        ),
        (
            {"tokens": ("<bot>",)},
            {},
            r"the tokenizer of .* has no token `<\|start-latent\|>`: name .*`--latent-tokens`",
        ),
        ({"tokens": (BEGIN,)}, {}, r"has no token `<\|end-latent\|>`"),
        (
            {"resize": False},
            {},
            r"token `<\|start-latent\|>` is number \d+, and a model that knows \d+: give the model",
        ),
        ({"thought": "pause", "latent_steps": 2, "tokens": TOKENS[:2]}, {}, r"has no token `<\|latent\|>`"),
        (
            {"thought": "pause", "latent_steps": 2, "latent_tokens": f"{BEGIN} {END}"},
            {},
            "was trained with a token to pause: name it as the third",
        ),
        ({"thought": "pause", "latent_steps": 2}, {"noise": 0.1}, "a token to pause stands in their place"),
        ({"thought": "pause", "latent_steps": 2}, {"noise": 0, "latent_paths": 2}, "take `--samples` for more chains"),
        ({"thought": "none"}, {}, "`--latent-steps` 3: .* was trained with nothing in the place of thoughts"),
        (
            {"thought": "none"},
            {"latent_steps": None, "control": "zero"},
            "nothing stands in their place: leave them out",
        ),
        ({"thought": "words"}, {}, "train.json of .* is damaged"),
        ({"latent_steps": "six"}, {"latent_steps": None}, "train.json of .* is damaged"),
        ({}, {"latent_steps": 10**9}, "`--latent-steps` 1000000000 are more than a context takes"),
        ({}, {"latent_steps": 500}, "needs .* prompt tokens .*, more than the model's context of 512"),
        ({}, {"latent_paths": 4}, "`--latent-paths` 4 of `coconut` differ by noise alone: add `--noise 0.2`"),
        ({}, {"noise_kind": "dropout"}, "says how `--noise` changes thoughts, and that is 0"),
        ({}, {"latent_tokens": "<bot>"}, "`--latent-tokens` is '<bot>': give the tokens before and after"),
        (
            {},
            {"latent_tokens": f"{BEGIN} {BEGIN}"},
            "begins and ends thoughts with the same token: give two that differ",
        ),
        ({}, {"soft_tokens": 4}, "`--soft-tokens` is for methods with slots"),
        (
            {},
            {"engine": "vllm", "device": "auto"},
            "`--method coconut` feeds states of the backbone back into it here, so it needs `--engine transformers`",
        ),
    ],
)
def test_what_cannot_work_is_told_before_and_in_a_run(coconut, checkpoint, silent, files, changes, said):
    settings = coconut(backbone=checkpoint(**files), **changes)
    for refused in (lambda: preview(settings), lambda: prepare(settings, silent)):
        with pytest.raises(UsageError, match=said) as error:
            refused()
        assert "\n" not in str(error.value)


def test_a_question_that_holds_a_token_of_thoughts_is_text_or_refused(tmp_path, coconut, checkpoint, silent):
    """Special tokens are cut out of data by every prompt; others could not be told from text."""
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"id": "a", "question": f"What is {BEGIN}?", "answer": 1}) + "\n")
    with pytest.raises(UsageError, match=r"holds the token `<\|start-latent\|>`, .*: remove it from the data"):
        prepare(coconut(backbone=checkpoint(), data=data), silent)
    setup = prepare(coconut(backbone=checkpoint(name="special", special=True), data=data), silent)
    (prompt,) = setup.method.prompts(setup.task.questions[0], [0])
    assert prompt.prefix.count(prompt.prefix[-1]) == 1


def test_a_chain_that_is_scored_again_keeps_its_settings(tmp_path, coconut, checkpoint, silent, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = checkpoint(latent_steps=2)
    execute(coconut(backbone=folder, latent_steps=None, assistant=DEFAULT_MODEL), silent)
    (run,) = (tmp_path / "runs").iterdir()
    before = json.loads((run / "summary.json").read_text())
    given = [
        "--method",
        "coconut",
        "--backbone",
        str(folder),
        "--limit",
        "2",
        "--samples",
        "2",
        "--max-new-tokens",
        "12",
    ]
    rest = ["--temperature", "1", "--device", "cpu", "--dtype", "float32"]
    done = CliRunner().invoke(app, [*given, *rest, "--rescore", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads((run / "summary.json").read_text())["tokens"] == before["tokens"]


def test_a_report_names_runs_by_their_steps_and_has_columns_of_them(tmp_path, coconut, checkpoint, silent):
    folder, runs = checkpoint(), {}
    for name, changes in {
        "cot": {"method": "cot", "latent_steps": None},
        "two": {"latent_steps": 2},
        "three": {"latent_steps": 3, "control": "zero"},
    }.items():
        execute(coconut(backbone=folder, **changes, out=tmp_path / name), silent)
        runs[name] = load_for_report(tmp_path / name)
    found = results(group([(None, run) for run in runs.values()], common=False), Settings(), lambda _: None)
    (table,) = (one for one in tables(found) if one.title == "Compute")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows.keys() == {"CoT-SC", "Coconut-SC, 2 latent steps", "Coconut-SC, 3 latent steps [zero]"}
    assert {name: row["latent steps"] for name, row in rows.items()} == dict(zip(rows, ("-", "2", "-"), strict=True))
    alone = results(group([(None, runs["cot"])], common=False), Settings(), lambda _: None)
    (plain,) = (one for one in tables(alone) if one.title == "Compute")
    assert "latent steps" not in plain.columns


@pytest.mark.parametrize(("method", "other"), [("coconut", "lora"), ("lora", "coconut")])
def test_an_adapter_that_another_method_was_trained_for_is_refused(
    config_of, make_adapter, tiny_model_folder, silent, method, other
):
    folder = make_adapter()
    settings = config_of(method=method, adapter=folder, backbone=str(tiny_model_folder), latent_paths=None)
    (folder / "train.json").write_text(json.dumps({"method": other}))
    for refused in (lambda: preview(settings), lambda: prepare(settings, silent)):
        with pytest.raises(UsageError, match=f"trained by `scale-train --method {other}`, and `--method` is {method}"):
            refused()
    (folder / "train.json").write_text(json.dumps({"method": ["damaged"]}))  # says nothing of its method
    if method == "lora":
        assert prepare(settings, silent)


def test_an_adapter_without_embeddings_of_the_tokens_is_refused(coconut, make_adapter, tiny_model_folder, silent):
    settings = coconut(backbone=tiny_model_folder, adapter=make_adapter())
    for refused in (lambda: preview(settings), lambda: prepare(settings, silent)):
        with pytest.raises(UsageError, match=r"brings no embedding of the token `<\|start-latent\|>`, which .* lacks"):
            refused()
    known = coconut(
        backbone=tiny_model_folder, adapter=make_adapter(name="other"), latent_tokens="<|im_start|> <|im_end|>"
    )
    assert prepare(known, silent).asked[0].soft_tokens == STEPS
