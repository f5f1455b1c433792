"""What defines each method, and each control: properties of prompts and thoughts, and whole runs on the tiny model."""

from __future__ import annotations

import json

import pytest
import torch

from scaling.config import RunConfig, idle_options, load_config
from scaling.methods import hints
from scaling.methods.kinds import KINDS, Trait
from scaling.methods.perturbations import Gumbel, dropout, gaussian, rms
from scaling.methods.thoughts import partners_of
from scaling.models import loading
from scaling.prompts import SLOT
from scaling.records.costs import RunCosts
from scaling.records.errors import UsageError
from scaling.records.journal import load_questions
from scaling.records.records import Question
from scaling.run import execute, prepare
from scaling.tasks.catalogue import load_task
from scaling.tasks.task import PlainTask, ask

METHODS = tuple(KINDS)
PERTURBED = ("softcot-p", "softcot-dropout", "softcot-gumbel")
EMBEDDINGS = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
CONTROLS = ("zero", "mean", "shuffled", "counterfactual", "unk", "none")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(config_of, silent):
    """`made(**changes)`: the method of a run, with its setup."""
    return lambda **changes: prepare(config_of(**changes), silent)


def thoughts_of(setup, number: int = 0) -> torch.Tensor:
    paths = range(setup.config.latent_paths or 1)
    return torch.stack([one.thoughts for one in setup.method.prompts(setup.task.questions[number], paths)])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_knows_its_costs(tmp_path, config_of, silent, method, make_adapter, make_contemplation):
    several = {} if method == "softcot++" or method in PERTURBED else {"latent_paths": 1}
    made = {"lora": make_adapter, "ccot": make_contemplation}
    adapter = {"adapter": made[method]()} if method in made else {}
    if method == "coconut":
        adapter = {"latent_steps": 2, "latent_tokens": "<|im_start|> <|im_end|>"}
    summary = execute(config_of(method=method, out=tmp_path / "run", **several, **adapter), silent)
    assert summary["complete"] is True
    assert summary["num_completions"] == 2 * 2 * (several.get("latent_paths", 2))
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    costs = RunCosts.from_json(described["environment"]["costs"])
    assert (costs.assistant is None) == (not KINDS[method].has(Trait.ASSISTANT))
    for asked in load_questions(tmp_path / "run"):
        assert costs.question(asked) > 0
        # what the run computed at most, was nothing shared
        assert (asked.soft_tokens > 0) == (method not in ("cot", "assist-cot", "lora"))


def test_cot_is_the_backbones_own_generation(tmp_path, config_of, silent, made, tiny_model_folder):
    config = {"method": "cot", "latent_paths": 1, "samples": 1, "temperature": 0.0}
    setup = made(**config)
    execute(config_of(**config, out=tmp_path / "run"), silent)
    loaded = loading.load(str(tiny_model_folder), name="tiny", device="cpu", dtype=torch.float32)
    for question, completion in zip(setup.task.questions, silent.completions, strict=True):
        ids = torch.tensor([setup.method.prompts(question, [0])[0].prefix])
        generated = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        text = loaded.tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert completion.text == text


def test_softcotpp_with_one_path_is_softcot(run, tmp_path):
    one = run(tmp_path / "one", method="softcot++", latent_paths=1)
    assert one == run(tmp_path / "other", method="softcot", latent_paths=1)


@pytest.mark.parametrize("method", PERTURBED)
def test_without_noise_every_path_is_softcots(run, tmp_path, made, method):
    plain = run(tmp_path / "plain", method="softcot", latent_paths=1)
    without = run(tmp_path / "without", method=method, latent_paths=1, noise=0)
    assert without == plain
    own = thoughts_of(made(method="softcot", latent_paths=1))
    assert torch.equal(thoughts_of(made(method=method, latent_paths=3, noise=0)), own.expand(3, -1, -1))


@pytest.mark.parametrize("method", PERTURBED)
def test_perturbed_paths_differ_and_do_not_depend_on_how_many_there_are(made, method):
    four = thoughts_of(made(method=method, latent_paths=4))
    assert torch.equal(four[:2], thoughts_of(made(method=method, latent_paths=2)))
    for path in range(1, 4):
        assert not torch.equal(four[0], four[path])
    assert not torch.equal(four, thoughts_of(made(method=method, latent_paths=4, seed=1)))
    other = thoughts_of(made(method=method, latent_paths=4), 1)  # another question has noise of its own
    assert not torch.allclose(four - four.mean(0), other - other.mean(0))


@pytest.mark.parametrize("perturb", [gaussian, dropout, Gumbel(EMBEDDINGS)])
@pytest.mark.parametrize("noise", [0.25, 1.0])
def test_perturbations_have_the_asked_size(perturb, noise):
    generator = torch.Generator().manual_seed(1)
    thought = torch.randn(8, 64, generator=generator)
    sizes = [float(rms(perturb(thought, noise, generator) - thought) / rms(thought)) for _ in range(50)]
    assert sum(sizes) / 50 == pytest.approx(noise, rel=0.08)


def test_dropout_keeps_the_mean():
    generator = torch.Generator().manual_seed(2)
    thought = torch.ones(4, 16)
    mean = torch.stack([dropout(thought, 1.0, generator) for _ in range(4000)]).mean(0)
    assert mean == pytest.approx(thought.numpy(), abs=4 * 4000**-0.5)


def test_gumbel_moves_within_the_span_of_the_embeddings():
    embeddings = torch.zeros(40, 8)
    embeddings[:, :3] = torch.randn(40, 3, generator=torch.Generator().manual_seed(3))
    thought = torch.randn(2, 8, generator=torch.Generator().manual_seed(4))
    moved = Gumbel(embeddings)(thought, 0.5, torch.Generator().manual_seed(5)) - thought
    assert moved[:, 3:].abs().max() < 1e-6
    assert moved[:, :3].abs().min() > 0


@pytest.mark.parametrize("method", ["softcot++", "softcot-p"])
@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_replaces_the_thoughts_and_nothing_else(made, method, control):
    own, other = made(method=method), made(method=method, control=control)
    for question in own.task.questions:
        before, after = (setup.method.prompts(question, [0, 1]) for setup in (own, other))
        assert [(p.prefix, p.suffix, p.path) for p in before] == [(p.prefix, p.suffix, p.path) for p in after]
    thoughts = thoughts_of(other)
    assert thoughts.shape == ((2, 0, 32) if control == "none" else (2, 4, 32))
    assert control == "none" or not torch.equal(thoughts, thoughts_of(own))
    asked = other.asked[0]
    assert asked.soft_tokens == thoughts.shape[1]
    assert (asked.assistant_tokens > 0) == (control in ("shuffled", "counterfactual"))


def test_the_zero_and_the_placeholder_control(made):
    assert (thoughts_of(made(control="zero")) == 0).all()
    setup = made(control="unk")
    rarest = setup.backbone.rare_rows()[0]
    assert torch.equal(thoughts_of(setup), rarest.expand(2, 4, -1))


def test_shuffled_thoughts_are_another_questions_whatever_is_asked(made):
    own, shuffled = made(limit=3), made(limit=3, control="shuffled")
    following = made(limit=4)
    for number in range(3):
        assert torch.equal(thoughts_of(shuffled, number), thoughts_of(following, number + 1))
        assert not torch.equal(thoughts_of(shuffled, number), thoughts_of(own, number))
    assert torch.equal(
        thoughts_of(made(limit=1, control="shuffled")), thoughts_of(shuffled)
    )  # an extension changes nothing


def test_partners_are_never_oneself():
    questions = [Question(f"q{n}", "", "") for n in range(3)]
    assert {key: partner.id for key, partner in partners_of(questions).items()} == {"q0": "q1", "q1": "q2", "q2": "q0"}
    with pytest.raises(UsageError, match="there is only one question"):
        partners_of(questions[:1])


def test_the_mean_thought_is_the_mean_of_the_first_questions(made):
    several = made(limit=32)
    mean = torch.stack([thoughts_of(several, number) for number in range(32)]).mean(0)
    assert torch.allclose(thoughts_of(made(limit=2, control="mean")), mean, atol=1e-5)


def test_cot_unk_has_raw_placeholders_in_softcots_prompt(made):
    unk, soft = (
        made(method="cot-unk", latent_paths=1, soft_tokens=3),
        made(method="softcot", latent_paths=1, soft_tokens=3),
    )
    question = unk.task.questions[0]
    (ours,), (its,) = (setup.method.prompts(question, [0]) for setup in (unk, soft))
    assert (ours.prefix, ours.suffix) == (its.prefix, its.suffix)
    assert torch.equal(ours.thoughts, unk.backbone.rare_rows()[0].expand(3, -1))
    assert unk.asked[0].assistant_tokens == 0


def test_assist_cot_reads_the_assistants_own_words(made, tiny_model_folder):
    setup = made(method="assist-cot", latent_paths=1)
    assistant = loading.load(str(tiny_model_folder), name="tiny", device="cpu", dtype=torch.float32)
    for question, asked in zip(setup.task.questions, setup.asked, strict=True):
        ids = torch.tensor([setup.method._requests[question.id]])
        generated = assistant.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64, pad_token_id=0
        )[0, ids.shape[1] :]
        hint = assistant.tokenizer.decode(generated, skip_special_tokens=True).strip() or "none"
        assert f"<notes>{hint}</notes>" in asked.prompt
        assert SLOT not in asked.prompt
        assert (asked.hint_tokens, asked.assistant_tokens) == (len(generated), ids.shape[1])
        costs = setup.method.costs()
        without = costs.backbone.forward(asked.prefix_tokens)
        assert costs.question(asked) - without > costs.assistant.decode(len(generated), behind=ids.shape[1])


def test_hints_are_written_once(made, monkeypatch):
    first = made(method="assist-cot", latent_paths=1).asked

    decode, written = hints._decode, []

    def watched(assistant, prompts, **options):
        written.extend(prompts)
        return decode(assistant, prompts, **options)

    monkeypatch.setattr(hints, "_decode", watched)
    assert made(method="assist-cot", latent_paths=1, seed=5).asked == first
    assert written == []
    longer = made(method="assist-cot", latent_paths=1, limit=3)
    assert longer.asked[:2] == first
    assert written == [longer.task.questions[2].id]


def test_hints_that_other_tokens_end_are_other_hints(made, monkeypatch):
    first = made(method="assist-cot", latent_paths=1).asked
    assert all(asked.hint_tokens > 1 for asked in first)
    monkeypatch.setattr(loading.LanguageModel, "end_tokens", tuple(range(400)))  # all there are
    again = made(method="assist-cot", latent_paths=1).asked
    assert [asked.hint_tokens for asked in again] == [1] * len(again), "the first token ends each"


def test_a_torn_line_of_hints_is_written_again(made, tmp_path):
    first = made(method="assist-cot", latent_paths=1).asked
    (path,) = (tmp_path / "cache" / "hints").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert made(method="assist-cot", latent_paths=1).asked == first


@pytest.mark.parametrize("shots", [1, 2])
def test_exemplars_are_solved_training_questions(made, shots):
    prompt = made(method="cot", latent_paths=1, shots=shots).asked[0].prompt
    solved = load_task("arithmetic", split="train", limit=shots).questions
    places = [prompt.index(text) for one in solved for text in (one.text, ask(PlainTask("number"), "solution", one))]
    assert places == sorted(places)
    assert prompt.index(made(method="cot", latent_paths=1).task.questions[0].text) > places[-1]
    assert prompt.count("The answer is") == 2 * shots + 1  # asked for each time, said in each exemplar


def test_exemplars_come_from_the_training_file_of_a_folder(made, tmp_path):
    def write(name: str, *rows: dict) -> None:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def row(name: str, **more: object) -> dict:
        return {"id": name, "question": f"What is {name}?", "answer": "7", **more}

    write("test.jsonl", row("t1"), row("t2"))
    write("train.jsonl", row("t1", rationale=["asked too"]), row("a"), row("b", rationale=["because"]))
    common = {"method": "cot", "latent_paths": 1, "task": None, "data": tmp_path / "data"}
    prompt = made(**common, shots=1).asked[0].prompt
    assert "because The answer is 7." in prompt
    assert "asked too" not in prompt
    with pytest.raises(
        UsageError, match="`--shots` 2 needs that many training questions with a rationale, and there are 1"
    ):
        made(**common, shots=2)
    with pytest.raises(UsageError, match="takes solved questions from"):
        made(**common | {"data": tmp_path / "data" / "test.jsonl"}, shots=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"method": "cot", "control": "zero"},
            "`--control` is for methods with soft thoughts, and `--method` is `cot`",
        ),
        ({"method": "softcot", "noise": 0.0}, "`--noise` is for the methods that perturb thoughts"),
        ({"method": "softcot++", "shots": 2}, "`--shots` is for `cot`"),
        ({"method": "lora", "adapter": "x", "shots": 2}, "`--shots` is for `cot`"),
        ({"method": "lora", "adapter": "x", "latent_paths": 2}, "needs a method with several paths"),
        ({"method": "lora"}, "`--method lora` needs `--adapter`"),
        ({"method": "cot", "adapter": "x"}, "`--adapter` is for `lora`, `coconut` and `ccot`, and `--method` is `cot`"),
        ({"method": "assist-cot", "thinker": "x"}, "`--thinker` is for methods with soft thoughts"),
        ({"method": "assist-cot", "soft_tokens": 2}, "`--soft-tokens` is for methods with slots"),
        ({"method": "cot-unk", "latent_paths": 2}, "needs a method with several paths"),
        ({"method": "cot", "engine": "vllm", "assistant_device": "cpu"}, "is for methods with an assistant"),
        ({"engine_args": "max_num_seqs=2"}, "`--engine-args` is for `vllm`, and `--engine` is `transformers`"),
        ({"engine_seeds": "one"}, "`--engine-seeds` is for `vllm` or `openai`"),
        ({"assistant_device": "cpu"}, "`--assistant-device` is for `vllm` or `openai`"),
        ({"engine": "vllm", "device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"engine": "vllm", "max_batch_tokens": 9}, "gpu_memory_utilization"),
        (
            {"engine": "vllm", "batch_size": 8, "engine_args": "max-num-seqs=4"},
            "`--batch-size` 8 .*max_num_seqs.* to 4",
        ),
        ({"engine": "vllm", "base_url": "http://x/v1"}, "`--base-url` is for `openai`"),
        ({"engine": "vllm", "method": "lora", "adapter": "x"}, "needs `--engine transformers`"),
        ({"engine": "openai"}, "`--engine openai` needs `--base-url`"),
        ({"engine": "openai", "base_url": "http://me:key@x/v1"}, "would be written to disk.* set OPENAI_API_KEY"),
        *(
            ({"engine": "openai", "base_url": url}, "`--base-url` must be an address, .* and is .*: give one")
            for url in (
                "localhost:8000/v1",
                "ftp://x/v1",
                "http:///v1",
                "http://x:port/v1",
                "http://x:99999",
                "http://[::1",
            )
        ),
        ({"engine": "openai", "base_url": "http://a b/v1"}, "must be an address"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        RunConfig(**settings).resolved()


_VALUES = {
    "thinker": "untrained",
    "soft_tokens": 2,
    "control": "zero",
    "noise": 0.1,
    "refine_steps": 2,
    "thought_scale": 0.5,
    "adapter": "x",
    "shots": 1,
    "shot_format": "text",
    "rationale": "equations",
    "latent_paths": 2,
    "method_args": {"steps": 2},
    "assistant_prompt": "answer",
    "noise_kind": "dropout",
    "latent_steps": 2,
    "latent_tokens": "<begin> <end>",
}


@pytest.mark.parametrize("method", METHODS)
def test_options_are_idle_exactly_where_they_are_refused(method):
    given = {"adapter": "x"} if KINDS[method].has(Trait.ADAPTER) else {}
    refused = set()
    for key, value in _VALUES.items():
        needed: dict[str, float] = {"shots": 1} if key in ("shot_format", "rationale") else {}
        if key == "noise_kind" or (method == "coconut" and key == "latent_paths"):
            needed = {"noise": 0.1}
        try:
            RunConfig(**{"method": method, **given, **needed, key: value}).resolved()
        except UsageError:
            refused.add(key)
    of_the_assistant = {"assistant", "assistant_device"}
    assert idle_options(method) - of_the_assistant == refused
    assert idle_options(method) & of_the_assistant == (set() if RunConfig(method=method).assisted else of_the_assistant)


def test_engine_arguments_are_pairs_or_a_mapping():
    pairs = "tensor-parallel-size=2 --enforce_eager=true quantization=fp8 hf_overrides='{a: 1}'"
    wanted = {"tensor_parallel_size": 2, "enforce_eager": True, "quantization": "fp8", "hf_overrides": {"a": 1}}
    assert RunConfig(engine_args=pairs).engine_args == wanted
    assert RunConfig(engine_args=wanted).engine_args == wanted
    assert RunConfig(engine_args={key.replace("_", "-"): value for key, value in wanted.items()}).engine_args == wanted
    with pytest.raises(UsageError, match="give `key=value` pairs"):
        load_config(None, {"engine_args": "fast"}, RunConfig)


@pytest.mark.parametrize("value", ["8k", "auto", "-1", "0", "2.5", "true", ""])
def test_the_longest_sequence_is_a_number_of_tokens(value):
    with pytest.raises(UsageError, match=r"max_model_len must be a whole number of tokens from 1, and is .*give one"):
        RunConfig(engine="vllm", engine_args=f"max_model_len={value}").resolved()
    assert RunConfig(engine="vllm", engine_args="max_model_len=1").resolved().engine_args == {"max_model_len": 1}


@pytest.mark.parametrize(
    "given",
    [
        *("hf_token=hf_abc", "hf-token=hf_abc", "watermark_config='{key: hf_abc}'"),
        *("HF_TOKEN=hf_abc", "--HF-Token=hf_abc", "hf_tokn=hf_abc", "hftoken=hf_abc", "huggingface_token=hf_abc"),
        *("api_key=hf_abc", "client_secret=hf_abc", {"hf-token": "hf_abc"}, {"HF_Token": "hf_abc"}),
        {"Watermark-Config": {"key": "hf_abc"}},
    ],
    ids=str,
)
def test_no_secret_among_engine_arguments_comes_to_be_written(given):
    with pytest.raises(UsageError, match="holds a secret, which would be written to disk: leave it out") as error:
        RunConfig(engine="vllm", engine_args=given).resolved()
    assert "hf_abc" not in str(error.value)


def test_names_with_tokens_in_them_hold_no_secret():
    """Those of vLLM's AsyncEngineArgs, 0.33."""
    names = ["tokenizer", "skip_tokenizer_init", "tokenizer_mode", "tokenizer_revision", "tokens_only", "spec_tokens"]
    names += ["max_num_batched_tokens", "max_num_scheduled_tokens", "long_prefill_token_threshold", "watermark"]
    for name in names:
        RunConfig(method="cot", engine="vllm", engine_args={name: 1}).resolved()


def test_defaults_of_the_perturbed_methods():
    for method in PERTURBED:
        resolved = RunConfig(method=method, thinker="untrained").resolved()
        assert (resolved.noise, resolved.latent_paths) == (0.2, 8)
    assert RunConfig(method="softcot-p", noise=0).resolved().noise == 0
    assert RunConfig(method="softcot").resolved().noise is None


def test_defaults_of_latent_steps():
    """One path, as in the paper, and that without noise; several are told that only noise makes them differ."""
    resolved = RunConfig(method="coconut").resolved()
    assert (resolved.noise, resolved.noise_kind, resolved.latent_paths) == (0.0, None, 1)
    noisy = RunConfig(method="coconut", latent_paths=4, noise=0.1).resolved()
    assert (noisy.noise_kind, noisy.resolved()) == ("gaussian", noisy)
