"""`--dry-run` refuses what the run refuses, in the same words, and reads no weights; and what is missing is told first."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from scaling import run
from scaling.engines import server as openai_engine
from scaling.preview import preview
from scaling.records.errors import UsageError
from scaling.run import execute


@pytest.fixture
def refused(config_of, silent, monkeypatch):
    """`refused(**changes)`: what the dry run says, once it is seen that the run says the same and wrote nothing."""

    def both(*, same=True, **changes):
        config = config_of(**changes)
        with monkeypatch.context() as patch:
            patch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # nothing may be loaded
            with pytest.raises(UsageError) as dry:
                preview(config)
        with pytest.raises(UsageError) as wet:
            execute(config, silent)
        assert silent.completions == []
        if same:
            assert str(dry.value) == str(wet.value)
        return str(dry.value)

    return both


def rows(path, number, *, rationale=None, text="How many is 2 and 3?"):
    made = [{"id": f"{path.stem}-{i}", "question": text, "answer": 5, "rationale": rationale} for i in range(number)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def test_more_paths_than_the_checkpoint_holds(refused, make_checkpoint):
    assert "holds 2 latent paths" in refused(thinker=make_checkpoint(), latent_paths=3)


@pytest.mark.parametrize("role", ["assistant", "backbone"])
def test_a_checkpoint_of_another_width(refused, make_checkpoint, role):
    assert f"{role} width 40" in refused(thinker=make_checkpoint(**{f"{role}_width": 40}))


def test_slots_that_the_checkpoint_does_not_have(refused, make_checkpoint):
    assert "`--soft-tokens` 4" in refused(thinker=make_checkpoint(per_path=3), soft_tokens=4)


def test_a_checkpoint_that_is_not_there(refused, tmp_path):
    assert "`--thinker`" in refused(thinker=tmp_path / "nowhere")


@pytest.mark.parametrize("method", ["softcot++", "cot", "cot-unk", "assist-cot"])
def test_a_prompt_that_does_not_fit(refused, method):
    several = {"latent_paths": 1} if method != "softcot++" else {}
    said = refused(method=method, max_new_tokens=512, same=method != "assist-cot", **several)
    assert "context of 512" in said
    assert "`--max-new-tokens` 512" in said


@pytest.mark.parametrize("method", ["softcot++", "assist-cot"])
def test_a_prompt_that_does_not_fit_the_assistant(refused, method, tmp_path, tiny_model_folder):
    """Mistake: an index error of its position embeddings, once it thinks."""
    short = tmp_path / "short"
    shutil.copytree(tiny_model_folder, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    assert "more than its context of 40" in refused(method=method, assistant=str(short), latent_paths=1)


def test_too_few_solved_questions(refused, tmp_path):
    rows(tmp_path / "data" / "test.jsonl", 1)
    rows(tmp_path / "data" / "train.jsonl", 2, rationale="2 + 3 = 5", text="How many are 2 and 3 more?")
    asked = {"method": "cot", "latent_paths": 1, "data": tmp_path / "data", "limit": None}
    assert "there are 2" in refused(**asked, shots=3)


def test_shuffling_a_single_question(refused, tmp_path):
    assert "only one question" in refused(data=rows(tmp_path / "one.jsonl", 1), limit=None, control="shuffled")


def test_an_adapter_of_another_backbone(refused, make_adapter, tmp_path, tiny_model_folder, make_model):
    wide = tmp_path / "wide"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.save_pretrained(wide)
    make_model("llama", vocab_size=len(tokenizer), hidden_size=64).save_pretrained(wide)
    adapter = make_adapter()
    said = refused(method="lora", latent_paths=1, adapter=adapter, backbone=str(wide))
    assert "does not fit `--backbone`" in said


def test_an_adapter_that_fits_is_accepted(config_of, make_adapter):
    settings, _ = preview(config_of(method="lora", latent_paths=1, adapter=make_adapter()))
    assert settings["method"] == "lora"


@pytest.mark.parametrize("role", ["backbone", "assistant"])
def test_a_folder_without_weights(refused, tiny_model_folder, tmp_path, role):
    folder = tmp_path / "bare"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "model.safetensors").unlink()
    assert "no weights (*.safetensors)" in refused(**{role: str(folder)})


@pytest.mark.parametrize("kept", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_most_of_a_model(refused, tiny_model_folder, tmp_path, kept):
    """Mistake: `Couldn't instantiate the backend tokenizer from one of: (1) a tokenizers library serialization file ...`"""
    (tmp_path / "bare").mkdir()
    shutil.copy(tiny_model_folder / kept, tmp_path / "bare")
    said = refused(backbone=str(tmp_path / "bare"))
    assert "instantiate" not in said
    assert "no tokenizer (tokenizer.json) and no weights" in said or "no config.json" in said


def test_a_directory_of_another_run(config_of, silent, refused, tmp_path, make_checkpoint):
    out = tmp_path / "run"
    execute(config_of(out=out), silent)
    silent.completions.clear()
    before = (out / "samples.jsonl").read_bytes()
    assert "`--temperature` is 1.0" in refused(out=out, temperature=0.7)
    data = rows(tmp_path / "other.jsonl", 2)
    said = refused(out=out, data=data)
    assert "the first question of the data" in said
    assert "--first-question" not in said
    assert "the file of `--thinker`" in refused(out=out, thinker=make_checkpoint(), soft_tokens=4)
    assert preview(config_of(out=out, samples=3))[0]["samples"] == 3, "what the run would go on with passes"
    assert (out / "samples.jsonl").read_bytes() == before


@pytest.mark.parametrize("there", ["foreign", "file", "damaged"])
def test_a_directory_that_is_none_of_a_run(config_of, silent, refused, tmp_path, there):
    out = tmp_path / "run"
    if there == "file":
        out.write_text("mine")
    elif there == "foreign":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        execute(config_of(out=out), silent)
        silent.completions.clear()
        (out / "samples.jsonl").write_text("{}\n{}\n")
    refused(out=out, same=there != "file")


def test_a_server_that_does_not_answer(refused, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = {"engine": "openai", "device": "auto", "base_url": "http://127.0.0.1:1/v1"}
    assert "does not answer" in refused(**asked, method="cot", latent_paths=1)


@pytest.mark.parametrize(
    ("served", "changes", "said"),
    [
        ({"context": 50}, {}, "at most 50 tokens"),
        ({"is_vllm": False}, {"method": "softcot++"}, "takes no prompt|is no vLLM server"),
        ({"is_vllm": False}, {"top_k": 5}, "`--top-k` is no part of the protocol"),
    ],
)
def test_a_server_that_does_not_take_it(config_of, monkeypatch, served, changes, said):
    """Asked before anything is loaded; the run's own refusals are tested with a server, in test_openai."""

    class Fake(openai_engine.Server):
        def __init__(self, base_url, model):
            self.base_url, self.model, self.context, self.is_vllm = base_url, model or "m", None, True
            vars(self).update(served)

    monkeypatch.setattr(openai_engine, "Server", Fake)
    asked = {"method": "cot", "latent_paths": 1, **changes}
    config = config_of(engine="openai", device="auto", base_url="http://h/v1", **asked)
    with pytest.raises(UsageError, match=said):
        preview(config)


@pytest.mark.parametrize("engine", ["vllm", "openai"])
@pytest.mark.parametrize("method", ["softcot++", "assist-cot"])
def test_an_engine_that_is_not_installed_is_missed_before_anything_is_done(
    refused, monkeypatch, engine, method, tmp_path
):
    """Mistake: vLLM looked for once the assistant had thought about all questions."""
    monkeypatch.delitem(sys.modules, engine, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    for module, name in ((run, "build"), (run, "task_of")):
        monkeypatch.setattr(module, name, None)
    more = {"base_url": "http://127.0.0.1:1/v1"} if engine == "openai" else {}
    said = refused(engine=engine, device="auto", method=method, latent_paths=1, out=tmp_path / "run", **more)
    assert f"`--engine {engine}`" in said
    assert f'`pip install "softcotpp[{engine}]"`' in said
    assert not (tmp_path / "run").exists()


def test_what_vllm_cannot_set_is_told_before_it_starts(config_of, monkeypatch):
    fields = SimpleNamespace(__dataclass_fields__={"max_model_len": None})
    for name in ("vllm", "vllm.engine"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", SimpleNamespace(AsyncEngineArgs=fields))
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=None))
    asked = {"engine": "vllm", "device": "auto", "method": "cot", "latent_paths": 1}
    with pytest.raises(UsageError, match=r"max_model_len must hold .* is 20"):
        preview(config_of(**asked, engine_args="max_model_len=20"))
    with pytest.raises(UsageError, match=r"max_model_lem: vLLM has no such setting. Did you mean `max_model_len`"):
        preview(config_of(**asked, engine_args="max_model_lem=200"))


def test_a_dry_run_reads_no_weights(config_of, tiny_model_folder, tmp_path):
    """Not even those of a model whose weights are there only in name."""
    folder = tmp_path / "hollow"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    assert AutoConfig.from_pretrained(folder).hidden_size == 32
    settings, shown = preview(config_of(backbone=str(folder), assistant=str(folder)))
    assert settings["soft_tokens"] == 4
    assert "[4]" in shown
    assert torch.get_default_device().type == "cpu"
