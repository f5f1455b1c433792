"""Methods of the user's own: what they may do, what run.json says of them, and how what is wrong with them is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from analysis.load import load as load_for_report
from analysis.methods import group
from scaling.config import RunConfig
from scaling.methods.base import Surroundings
from scaling.methods.build import parts_of
from scaling.methods.kinds import kind_of
from scaling.methods.thoughts import Constant
from scaling.models import hardware
from scaling.preview import preview
from scaling.records.errors import UsageError
from scaling.records.records import Question
from scaling.run import carry_out, execute, prepare
from scaling.tasks.catalogue import task_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_method.py"
HEADER = "import torch\n\nfrom scaling.methods.kinds import Trait\n\n\n"
LEARNED = '''
class Learned:
    """A prompt that was learned before, without an assistant."""

    name, title, soft_tokens = "learned", "Learned prompt", 3

    def __init__(self, surroundings, scale=0.1):
        self.width, self.scale = surroundings.backbone.width, scale

    def thoughts(self, question):
        return self.scale * torch.arange(3 * self.width).view(1, 3, self.width) / self.width

    def identity(self):
        return {"learned": "somewhere"}
'''
CHANGED = '''
class Changed:
    """Decodes with weights of its own, as after a training of the backbone."""

    traits = {traits}

    def __init__(self, surroundings):
        self.decoder = surroundings.{backbone}
        with torch.no_grad():
            for weight in self.decoder.model.parameters():
                weight.mul_(1.5)
'''
BATCHED = '''
class Batched:
    """Says which questions it was given together."""

    traits, questions_at_once = (Trait.PATHS,), 2
    asked = []

    def __init__(self, surroundings):
        self.shape = (surroundings.num_paths, surroundings.soft_tokens, surroundings.backbone.width)

    def batch_thoughts(self, questions):
        self.asked.append([question.id for question in questions])
        return torch.stack([torch.full(self.shape, float(len(question.text))) for question in questions])
'''
RETURNS = """
class Returns:
    def __init__(self, surroundings):
        self.width = surroundings.backbone.width

    def thoughts(self, question):
        return {value}
"""


@pytest.fixture
def method(tmp_path):
    """`method(text)`: `--method` of the class in this text."""

    def written(text: str, name: str = "own.py") -> str:
        (tmp_path / name).write_text(HEADER + text)
        return str(tmp_path / name)

    return written


@pytest.fixture
def made(config_of):
    """`made(method, **changes)`: the method's parts, built, and where it was built."""

    def build(spec, **changes):
        config, dtype = hardware.placed(config_of(method=spec, **changes).resolved())
        task = task_of(config)
        parts = parts_of(config, task)
        surroundings = Surroundings(parts.config, task, dtype, lambda _: None)
        return parts.build(surroundings), surroundings

    return build


def described(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_the_example_feeds_latent_steps_back_into_the_backbone(made):
    """Its thoughts are those of a plain loop over whole sequences, one path after the other, without kept keys."""
    method, surroundings = made(f"{EXAMPLE}:LatentSteps", latent_paths=2, soft_tokens=3, method_args={"noise": 0.3})
    question, backbone = surroundings.task.questions[0], surroundings.backbone
    found = method.thoughts(question)
    assert found.shape == (2, 3, backbone.width)
    assert not torch.allclose(found[0], found[1])
    start = torch.randn(2, 1, backbone.width, generator=torch.Generator().manual_seed(0))
    (prompt, _) = method.prompts(question, [0, 1])
    ids = torch.tensor([prompt.prefix])
    with torch.no_grad():
        for path in range(2):
            inputs = backbone.model.get_input_embeddings()(ids)
            state = backbone.model.model(inputs_embeds=inputs).last_hidden_state[:, -1:]
            state = state + 0.3 * state.std() * start[path]
            for step in range(3):
                own = state * backbone.embedding_scale() / state.pow(2).mean().sqrt()
                torch.testing.assert_close(found[path, step], own[0, 0], rtol=1e-4, atol=1e-5)
                inputs = torch.cat([inputs, own], dim=1)
                state = backbone.model.model(inputs_embeds=inputs).last_hidden_state[:, -1:]
    assert method.costs().projection == backbone.costs.forward(1)


def test_the_example_runs_goes_on_and_grows(tmp_path, run):
    whole = run(tmp_path / "whole", method=str(EXAMPLE))
    part = run(tmp_path / "part", method=str(EXAMPLE), limit=1, samples=1)
    assert len(part) == 2
    assert part.items() <= whole.items()
    assert run(tmp_path / "part", method=str(EXAMPLE)) == whole
    assert (tmp_path / "whole" / "thoughts.jsonl").exists()


def test_a_learned_prompt_needs_no_assistant(tmp_path, run, method):
    lines = run(tmp_path / "run", method=method(LEARNED), latent_paths=None, assistant="nowhere/to-be-found")
    assert len(lines) == 2 * 2
    config, environment = (described(tmp_path / "run")[key] for key in ("config", "environment"))
    assert (config["soft_tokens"], config["latent_paths"], config["thinker"]) == (3, 1, None)
    assert config["method_identity"] == {"learned": "somewhere"}
    assert not {"thinker_sha256", "assistant_fingerprint", "decoder_fingerprint"} & set(config)
    assert environment["costs"]["assistant"] is None
    assert environment["method_title"] == "Learned prompt"


def test_a_report_calls_it_by_its_title_when_its_file_is_gone(tmp_path, run, method):
    spec = method(LEARNED)
    run(tmp_path / "run", method=spec, latent_paths=None)
    Path(spec).unlink()
    (line,) = group([(None, load_for_report(tmp_path / "run"))], common=False)
    assert line.name == "Learned prompt-SC"


def test_a_decoder_of_its_own_draws_the_completions(tmp_path, run, method):
    spec = method(CHANGED.format(traits="(Trait.LOCAL,)", backbone="own_backbone()"))
    plain = run(tmp_path / "plain", method="cot", latent_paths=1)
    own = run(tmp_path / "own", method=spec, latent_paths=1)
    assert {key: line["seed"] for key, line in own.items()} == {key: line["seed"] for key, line in plain.items()}
    assert [line["text"] for line in own.values()] != [line["text"] for line in plain.values()]
    before, after = (described(tmp_path / name)["config"] for name in ("plain", "own"))
    assert before["backbone_fingerprint"] == after["backbone_fingerprint"] != after["decoder_fingerprint"]
    prompts = [(tmp_path / name / "questions.jsonl").read_text() for name in ("plain", "own")]
    assert prompts[0] == prompts[1], "without thoughts there are no slots"


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        (
            CHANGED.format(traits="()", backbone="own_backbone()"),
            {},
            "has a `decoder`: add Trait.LOCAL to its `traits`",
        ),
        (
            CHANGED.format(traits="(Trait.LOCAL,)", backbone="backbone"),
            {},
            "changed the weights of `surroundings.backbone`",
        ),
        (
            CHANGED.format(traits="(Trait.LOCAL,)", backbone="own_backbone().model"),
            {},
            "has a `decoder` of type LlamaForCausalLM",
        ),
        (
            CHANGED.format(traits="(Trait.LOCAL,)", backbone="own_backbone()"),
            {"engine": "vllm", "device": "auto"},
            "runs weights of the backbone here, so it needs `--engine transformers`",
        ),
        (
            CHANGED.format(traits="(Trait.NOTES,)", backbone="own_backbone()"),
            {},
            "may declare Trait.PATHS, Trait.ASSISTANT",
        ),
        (LEARNED.replace("surroundings.backbone", "surroundings.assistant"), {}, "add Trait.ASSISTANT to its `traits`"),
        (LEARNED.replace('"learned", "L', '"cot", "L'), {}, "has the name 'cot', and needs one"),
        (LEARNED.replace("Learned prompt", "Learned [x]"), {}, r"has the title 'Learned \[x\]', and needs a text"),
        (LEARNED.replace("soft_tokens = ", "latent_paths = "), {}, r"has 3 latent paths: add Trait.PATHS"),
        (LEARNED.replace('"somewhere"', "torch"), {}, r"has an `identity\(\)` that JSON cannot hold"),
        (
            LEARNED,
            {"method_args": {"scales": 1}},
            r"`--method-args` does not fit .* it takes scale\. Did you mean `scale`",
        ),
        (
            LEARNED.replace("name, title", "flops_per_slot = -1.5\n    name, title"),
            {},
            "has `flops_per_slot` -1.5, and needs",
        ),
        (LEARNED, {"latent_paths": 2}, "needs a method with several paths"),
        (LEARNED, {"thinker": "untrained"}, "`--thinker` is for methods with soft thoughts"),
        (LEARNED, {"noise": 0.1}, "`--noise` is for the methods that perturb thoughts"),
        ("def own(surroundings):\n    return 1\n\n\nown.title = 3", {"spec": ":own"}, "has the title 3"),
        ("def own(surroundings):\n    return 1", {"spec": ":own"}, "made a int, which has no method `thoughts`"),
    ],
)
def test_a_method_that_does_not_fit_is_refused(made, method, text, changes, said):
    changes = {"latent_paths": None, **changes}
    with pytest.raises(UsageError, match=said) as error:
        made(method(text) + changes.pop("spec", ""), **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[1.0]", r"are a list: return a torch.Tensor of shape \[1, 4, 32\]"),
        ("torch.zeros(4, self.width)", r"have the shape \[4, 32\], and \[1, 4, 32\] is needed, which is \[N, L, D\]"),
        ("torch.zeros(1, 4, self.width, dtype=torch.int64)", "are of type torch.int64: return floating-point numbers"),
        ("torch.full((1, 4, self.width), float('nan'))", r"are not numbers \(NaN or infinite\)"),
        ("question.nothing", r"failed at .*own\.py, line 12 \(AttributeError: .*: mend it there"),
    ],
)
def test_thoughts_are_checked(made, method, value, said):
    built, surroundings = made(method(RETURNS.format(value=value)), latent_paths=None)
    with pytest.raises(UsageError, match=said) as error:
        built.prompts(surroundings.task.questions[0], [0])
    assert "own.py" in str(error.value)


def test_thoughts_of_half_precision_become_float32(made, method):
    value = "torch.ones(1, 4, self.width, dtype=torch.bfloat16, requires_grad=True)"
    built, surroundings = made(method(RETURNS.format(value=value)), latent_paths=None)
    (prompt,) = built.prompts(surroundings.task.questions[0], [0])
    assert (prompt.thoughts.dtype, prompt.thoughts.requires_grad) == (torch.float32, False)


def test_questions_are_given_together_whatever_was_asked_before(made, method):
    built, surroundings = made(method(BATCHED), limit=5)
    questions = surroundings.task.questions
    asked = [[question.id for question in questions[start : start + 2]] for start in (0, 2, 4)]
    batches = kind_of(surroundings.config.method).factory.asked
    batches.clear()
    for question in (questions[3], questions[2], questions[0], questions[4]):
        prompts = built.prompts(question, [1])
        assert (prompts[0].thoughts == len(question.text)).all()
    assert batches == [asked[1], asked[0], asked[2]]
    assert (built.thoughts(Question("elsewhere", "abc", "")) == 3).all(), "as the harness brings them, one by one"


def test_where_vllm_takes_the_device_all_thoughts_are_made_before(made, method):
    built, surroundings = made(method(BATCHED), limit=5, engine="vllm", device="auto")
    batches = kind_of(surroundings.config.method).factory.asked
    batches.clear()
    lines = []
    built.prepare(surroundings.task.questions, lines.append)
    assert len(batches) == 3
    for question in surroundings.task.questions:
        built.prompts(question, [0])
    assert len(batches) == 3
    assert lines == ["thinking about question 1 of 5"]


@pytest.mark.parametrize("control", ["zero", "mean", "shuffled", "unk", "none"])
def test_controls_replace_its_thoughts(tmp_path, run, method, control):
    run(tmp_path / "run", method=method(BATCHED), control=control)
    assert described(tmp_path / "run")["config"]["method_sha256"]


def test_another_source_is_another_run_and_another_place_is_the_same(tmp_path, run, method):
    spec = method(LEARNED)
    before = run(tmp_path / "run", method=spec, latent_paths=None, samples=1)
    moved = str(shutil.copy(spec, tmp_path / "moved.py"))
    assert before.items() < run(tmp_path / "run", method=moved, latent_paths=None).items()
    with pytest.raises(UsageError, match=r"the code of `--method` \(a SHA-256 of its file and name\) is"):
        run(tmp_path / "run", method=method(f"{LEARNED}\n# mended\n"), latent_paths=None)
    with pytest.raises(UsageError, match="`--method-args` is"):
        run(tmp_path / "run", method=moved, latent_paths=None, method_args={"scale": 2.0})


def test_a_dry_run_makes_nothing_and_checks_what_it_can(config_of, method):
    spec = method(LEARNED.replace("self.width, self.scale =", "raise AssertionError;"))
    settings, prompts = preview(config_of(method=spec, latent_paths=None))
    assert (settings["soft_tokens"], settings["method"]) == (3, spec)
    assert "<notes>[1][2][3]</notes>" in prompts
    with pytest.raises(UsageError, match="`--method-args` does not fit"):
        preview(config_of(method=spec, latent_paths=None, method_args={"x": 1}))


def test_a_record_names_the_thoughts_that_were_used(tmp_path, config_of, silent, make_checkpoint):
    """A source put in the place of a thinker's leaves no checksum of that thinker in run.json."""
    config = config_of(method="softcot++", thinker=str(make_checkpoint()))
    plain = execute(config.model_copy(update={"out": tmp_path / "plain"}), silent)
    setup = prepare(config.model_copy(update={"out": tmp_path / "replaced"}), silent)
    setup.method.thoughts = Constant(torch.zeros(2, 3, setup.backbone.width))
    replaced = carry_out(setup, silent)
    assert plain["num_completions"] == replaced["num_completions"]
    before, after = (described(tmp_path / name)["config"] for name in ("plain", "replaced"))
    assert before["thinker_sha256"]
    assert "assistant_fingerprint" in before
    assert not {"thinker_sha256", "assistant_fingerprint"} & set(after)


def test_settings_of_a_run_whose_file_is_gone_can_be_read():
    assert RunConfig(method="gone.py:Own").method == "gone.py:Own"
    with pytest.raises(UsageError, match=r"gone\.py cannot be read"):
        RunConfig(method="gone.py:Own").resolved()
