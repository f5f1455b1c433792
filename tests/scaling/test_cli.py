"""`scale-run` from outside: its options, what it says when they are wrong, and what it prints where."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pandas
import pytest
import typer
import yaml
from typer.testing import CliRunner

from scaling.cli import app
from scaling.config import RunConfig, load_config, option
from scaling.methods.kinds import KINDS
from scaling.records.errors import UsageError
from scaling.records.settings import settings_of
from scaling.training.config import TrainConfig

NOT_SETTINGS = {"--config", "--json", "--dry-run", "--rescore", "--preview-data", "--local-files-only"}
OPTIONS = [*map(option, RunConfig.model_fields), *NOT_SETTINGS]


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch) -> Iterator[None]:
    """A run without `--out` writes under the current folder; and the command changes how SIGTERM is taken."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def call():
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def small(tiny_model_folder):
    """Options of a run of one second."""
    model = str(tiny_model_folder)
    texts = (
        f"--device cpu --dtype float32 --backbone {model} --assistant {model} --limit 1 --latent-paths 2 --samples 1"
    )
    return [*texts.split(), "--max-new-tokens", "6"]


def refused(result) -> str:
    """The one sentence on standard error of a command that was refused."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("scale-run: ")]
    assert result.stderr.rstrip().splitlines()[-1:] == said
    return said[0]


def test_help_loads_no_torch(command):
    process = command("--help", python=("-X", "importtime"))
    printed, times = process.communicate(timeout=60)
    assert process.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip() for line in times.splitlines() if line.startswith("import time:")}
    assert "typer" in loaded  # the list is one
    assert loaded.isdisjoint({"torch", "transformers", "numpy", "scipy", "pandas"})
    for name in OPTIONS:
        assert name in printed


def test_the_options_are_the_settings():
    made = typer.main.get_command(app)
    spelled = {parameter.opts[0] for parameter in made.params if not getattr(parameter, "hidden", False)}
    assert spelled - {"--help", "--version", "--install-completion", "--show-completion"} == set(OPTIONS)
    assert {option(key) for key in RunConfig.model_fields} == set(OPTIONS) - NOT_SETTINGS


@pytest.mark.parametrize(("typed", "meant"), [("--temprature", "--temperature"), ("--latent-path", "--latent-paths")])
def test_an_unknown_option_names_the_nearest(call, typed, meant):
    result = call(typed, "1")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert meant in result.stderr.replace(f"{typed} ", "")


def test_an_unknown_key_in_the_file_names_the_nearest(call, tmp_path):
    (tmp_path / "run.yaml").write_text("temprature: 1\n")
    said = refused(call("--config", tmp_path / "run.yaml"))
    assert "`temprature`" in said
    assert "Did you mean `temperature`?" in said


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [\n", "just text"])
def test_a_file_that_holds_no_settings(call, tmp_path, content):
    (tmp_path / "run.yaml").write_text(content)
    assert "run.yaml" in refused(call("--config", tmp_path / "run.yaml"))


def test_a_config_file_that_is_not_there(call):
    assert "`--config` nowhere.yaml" in refused(call("--config", "nowhere.yaml"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--top-k", "-1"),
        ("--adaptive", "0.5"),
        ("--adaptive", "1.01"),
        ("--adaptive", "nan"),
        ("--samples", "0"),
        ("--latent-paths", "0"),
        ("--limit", "0"),
        ("--max-new-tokens", "0"),
        ("--soft-tokens", "0"),
        ("--difficulty", "5"),
        ("--batch-size", "0"),
        ("--batch-size", "many"),
        ("--method", "softcat"),
        ("--engine", "steam"),
        ("--dtype", "int8"),
        ("--voter", "loudest"),
        ("--task", "arithmetics"),
        ("--split", "exam"),
    ],
)
def test_a_bad_value_is_one_sentence(call, tmp_path, small, name, value):
    said = refused(call(*small, name, value, "--out", tmp_path / "run"))
    assert f"`{name}`" in said
    assert value in said
    assert not (tmp_path / "run").exists()


def misspelt(value: str) -> str:
    """Without the sign in its middle."""
    return value[: len(value) // 2] + value[len(value) // 2 + 1 :]


FIXED = [  # of every option with a list of words: each of these
    (kind, key, value)
    for kind in (RunConfig, TrainConfig)
    for key, field in kind.model_fields.items()
    for part in (field.annotation, *get_args(field.annotation))
    for value in (get_args(part) if get_origin(part) is Literal else settings_of(kind)[key].values)
    if len(value) > 3
] + [(RunConfig, "method", name) for name in KINDS if len(name) > 3]


@pytest.mark.parametrize(("kind", "key", "value"), [*FIXED, (RunConfig, "method", "cot")])
def test_a_misspelt_word_names_the_nearest(kind, key, value):
    given = misspelt(value) if value != "cot" else "coot"
    with pytest.raises(UsageError, match=re.escape(f"`{option(key)}` is {given!r}")) as error:
        load_config(None, {key: given}, kind)
    known = {one for _, of, one in FIXED if of == key}
    assert re.search(r" Did you mean `(.+)`\?$", str(error.value))[1] in known | {"cot"}


def test_the_lists_of_words_are_many():
    assert {key for _, key, _ in FIXED} >= {"method", "control", "batch_size", "engine", "dtype", "voter", "targets"}


@pytest.mark.parametrize(
    ("name", "blank"),
    [
        *((name, "") for name in sorted({*OPTIONS} - {*NOT_SETTINGS, "--engine-args", "--exact"} | {"--config"})),
        ("--out", " "),
    ],
)
def test_an_empty_value_is_refused(call, monkeypatch, name, blank):
    """Mistake: `--out ""`, as of a variable that is not set, for the current folder."""
    numbers = (
        "--limit",
        "--difficulty",
        "--latent-paths",
        "--samples",
        "--soft-tokens",
        "--noise",
        "--shots",
        "--seed",
    )
    numbers += (
        "--adaptive",
        "--temperature",
        "--top-p",
        "--top-k",
        "--max-new-tokens",
        "--refine-steps",
        "--latent-steps",
        "--thought-scale",
    )
    monkeypatch.setenv("COLUMNS", "200")
    result = call(name, blank)
    if name in numbers:  # which the parser reads
        assert result.exit_code == 2
        assert f"'{name}'" in result.stderr
    else:
        what = "file" if name == "--config" else "value"
        assert refused(result) == f"scale-run: `{name}` is empty: give a {what}, or leave it out."


def test_engine_arguments_may_be_none():
    assert load_config(None, {"engine": "vllm", "engine_args": ""}, RunConfig).resolved().engine_args == {}


SECRET = "sk-0123456789"


@pytest.mark.parametrize(
    "url",
    [
        f"http://h/v1?api_key={SECRET}",
        f"http://me:{SECRET}@h/v1",
        f"http://{SECRET}@h/v1",
        f"http://h/v1#{SECRET}",
        f"http://h/v1;key={SECRET}",
        f"htp://h/v1?api_key={SECRET}",
        f"h/v1?token={SECRET}",
        f"http://h:x/v1?{SECRET}",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(call, small, tmp_path, url):
    asked = ["--engine", "openai", "--method", "cot", "--latent-paths", "1", "--base-url", url]
    Path("run.yaml").write_text(yaml.safe_dump({"engine": "openai", "base_url": url}))
    Path("list.yaml").write_text(yaml.safe_dump({"engine": "openai", "base_url": [f"http://h/v1?api_key={SECRET}"]}))
    tiny = [part for part in small if part not in ("--device", "cpu", "--latent-paths", "2")]
    for arguments in ([*tiny, *asked, "--out", tmp_path / "run"], ["--config", "run.yaml"], ["--config", "list.yaml"]):
        said = refused(call(*arguments))
        assert "`--base-url`" in said
        assert SECRET not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given",
    [f"hf_token={SECRET} {{", f"hf_token: {SECRET} {{", f'"hf_token={SECRET}', f"hf_overrides={{'api_key':'{SECRET}'"],
)
def test_engine_arguments_that_cannot_be_read_are_not_repeated_with_their_secrets(call, given):
    said = refused(call("--engine", "vllm", "--engine-args", given))
    assert "give `key=value` pairs" in said
    assert SECRET not in said


@pytest.mark.parametrize("key", ["speculative_config", "speculative-config"])
@pytest.mark.parametrize("method", ["softcot++", "softcot", "softcot-p", "cot-unk"])
def test_guessing_tokens_ahead_is_refused_for_soft_prompts(call, method, key):
    """Outputs diverge where prompts are embeddings (vllm#37170)."""
    given = f'{key}={{"method":"ngram","num_speculative_tokens":4}}'
    said = refused(call("--engine", "vllm", "--method", method, "--engine-args", given))
    assert "speculative_config" in said
    assert "vllm#37170" in said


@pytest.mark.parametrize("given", ["speculative_config=null", "speculative_config={}"])
def test_not_guessing_is_fine(given):
    load_config(None, {"engine": "vllm", "engine_args": given}, RunConfig).resolved()


def test_guessing_is_fine_for_text():
    given = {"engine": "vllm", "engine_args": {"speculative_config": {"method": "ngram"}}}
    for method in ("cot", "assist-cot"):
        load_config(None, {**given, "method": method}, RunConfig).resolved()


@pytest.mark.parametrize("key", ["temperature", "samples", "method"])
def test_a_bad_value_in_the_file_is_told_like_an_option(call, tmp_path, key):
    (tmp_path / "run.yaml").write_text(f"{key}: [1, 2]\n")
    assert f"`--{key}` is [1, 2]" in refused(call("--config", tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--method", "softcot", "--latent-paths", "2"], "--latent-paths"),
        (["--method", "cot", "--soft-tokens", "2"], "--soft-tokens"),
        (["--method", "cot", "--thinker", "x"], "--thinker"),
        (["--temperature", "0", "--samples", "2"], "--samples 1"),
        (["--adaptive", "0.9", "--voter", "hierarchical"], "--voter flat"),
        (["--task", "gsm8k", "--difficulty", "2"], "--difficulty"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_options_that_clash(call, arguments, named):
    assert named in refused(call(*arguments))


def test_a_model_folder_that_is_not_there(call, tmp_path):
    (tmp_path / "my-model").mkdir()
    said = refused(call("--backbone", tmp_path / "my-modell", "--out", tmp_path / "run"))
    assert str(tmp_path / "my-modell") in said
    assert "Did you mean `my-model`?" in said
    assert not (tmp_path / "run").exists()


GOOD = '{"id": "a", "question": "1 + 1?", "answer": 2}\n'


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("{oops\n", ["line 2", "not JSON"]),
        ('{"id": "b", "question": "1 + 2?"}\n', ["line 2", "`answer`"]),
        ('{"id": "b", "question": 7, "answer": 3}\n', ["line 2", "`question`", "7"]),
        ('{"id": "b", "question": "1 + 2?", "answer": "about three or four"}\n', ["line 2", "`answer`"]),
        ('{"id": "a", "question": "1 + 2?", "answer": 3}\n', ["line 2", "`id`", "unique", "line 1"]),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(call, tmp_path, small, second, said):
    data = tmp_path / "mine.jsonl"
    data.write_text(GOOD + second)
    sentence = refused(call(*small, "--data", data, "--out", tmp_path / "run"))
    for part in ["`--data`", str(data), *said]:
        assert part in sentence
    assert not (tmp_path / "run").exists()


ROWS = [
    {"id": "a", "question": "1 + 1?", "answer": "2", "rationale": ["One and one."]},
    {"id": "b", "question": "2 + 2?", "answer": "4", "rationale": ["Two and two."]},
]


@pytest.mark.parametrize("name", ["mine.parquet", "mine.json", "mine.csv", "mine.jsonl.gz"])
def test_another_format_is_asked_as_the_same_lines_are(call, tmp_path, name):
    table, lines = pandas.DataFrame(ROWS)[["id", "question", "answer"]], tmp_path / "lines" / "mine.jsonl"
    lines.parent.mkdir()
    table.to_json(lines, orient="records", lines=True)
    if name.endswith(".parquet"):
        table.to_parquet(tmp_path / name)
    elif name.endswith(".csv"):
        table.to_csv(tmp_path / name, index=False)
    else:
        table.to_json(tmp_path / name, orient="records", lines=name.endswith(".gz"))
    shown = [call("--data", data, "--preview-data").stdout for data in (tmp_path / name, lines)]
    assert shown[0] == shown[1]
    assert "2 questions of mine, answers of kind number" in shown[0]
    assert "data:" not in shown[0]


def test_a_preview_shows_what_was_taken_and_how_questions_are_asked(call, tmp_path, small):
    data = tmp_path / "quiz.csv"
    rows = [{"Question": f"Is it {i}?", "A": "yes", "B": "no", "Answer": "B"} for i in range(5)]
    pandas.DataFrame(rows).to_csv(data, index=False)
    shown = call(*small, "--data", data, "--preview-data", "--limit", 4).stdout
    assert "data: question=Question, answer=Answer, choices=A+B, id made from content, kind choice" in shown
    assert "4 questions of quiz, answers of kind choice" in shown
    assert shown.count("(A) yes\n(B) no\n") == 3
    assert shown.count("answer: B") == 3
    read = json.loads(call("--data", data, "--preview-data", "--json").stdout)
    assert (read["num_questions"], len(read["questions"])) == (5, 3)
    assert read["questions"][0]["prompt"] == "Is it 0?\n(A) yes\n(B) no"
    assert "leave one of them out" in refused(call(*small, "--data", data, "--preview-data", "--dry-run"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--columns", "question=q"], "`--columns` says what `--data` holds, which is not given"),
        (["--answer-kind", "text"], "`--answer-kind` says what `--data` holds, which is not given"),
        (["--task", "gsm8k", "--data", "DATA", "--answer-kind", "text"], "`--task gsm8k` says it itself"),
        (["--data", "DATA", "--answer-kind", "nubmer"], "Did you mean `number`?"),
        (["--data", "DATA", "--columns", "question"], "give `field=column` pairs"),
        (["--data", "DATA", "--columns", "question=a question=b"], "give `question` once"),
        (["--data", "DATA", "--columns", "questoin=a"], "and not for `questoin`"),
        (["--data", "DATA", "--columns", "question=qustion"], "Did you mean `question`?"),
        (
            ["--data", "DATA", "--columns", "question=question answer=answer answer_is=2"],
            "give one of letter, text, 0, 1",
        ),
        (["--data", "DATA", "--columns", "question=question answer=answer answer_is=0"], "has no options"),
    ],
)
def test_wrong_columns_and_kinds_are_a_sentence(call, tmp_path, small, options, said):
    (tmp_path / "mine.jsonl").write_text(GOOD)
    given = [str(tmp_path / "mine.jsonl") if option == "DATA" else option for option in options]
    assert said in refused(call(*small, *given, "--preview-data"))


def test_a_run_tells_once_what_was_taken_and_named_columns_are_part_of_it(call, tmp_path, small):
    (tmp_path / "mine.csv").write_text("Body,Question,Answer\nAnn has 2 pens.,How many?,2\n")
    options = [*small, "--data", tmp_path / "mine.csv", "--limit", 1, "--out", tmp_path / "run"]
    done = call(*options)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("data: question=Body+Question, answer=Answer, id made from content, kind number") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["columns"] is None
    assert "columns" in refused(call(*options, "--columns", "question=Question answer=Answer"))


def test_json_alone_is_on_standard_output(small, tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        app([*small, "--json", "--out", str(tmp_path / "run")])
    assert not ended.value.code
    printed = capfd.readouterr().out  # of the whole process, libraries included
    assert json.loads(printed) == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_a_run_ends_with_a_table_and_the_place_of_its_files(call, small, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # nothing is wrapped
    result = call(*small, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"files: {tmp_path / 'run'}/" in result.stdout
    assert f"{summary['accuracy']:.1%}" in result.stdout
    assert "no interval below 2 questions" in result.stdout


@pytest.mark.parametrize("method", ["softcot++", "softcot"])
def test_a_dry_run_shows_the_slots_and_writes_nothing(call, small, tmp_path, method):
    number = "2" if method == "softcot++" else "1"
    before = set(tmp_path.rglob("*"))
    result = call(*small, "--dry-run", "--soft-tokens", "3", "--method", method, "--latent-paths", number)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("[1][2][3]") == 2  # backbone and assistant
    assert "[4]" not in result.stdout
    assert "soft-thought-slot" not in result.stdout
    assert set(tmp_path.rglob("*")) == before


def test_a_dry_run_of_plain_chains_has_no_slots_and_no_assistant(call, small, tmp_path):
    result = call(*small, "--dry-run", "--method", "cot", "--latent-paths", "1", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "[1]" not in result.stdout
    assert "assistant prompt" not in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "shown", "slots"),
    [
        (["--method", "cot", "--shots", "1"], "The answer is", 0),
        (["--method", "assist-cot"], "<notes>[what the assistant writes]</notes>", 0),
        (["--method", "cot-unk"], "<notes>[1][2][3][4]</notes>", 1),
        (["--control", "shuffled"], "control shuffled: the slots hold the thoughts of another question", 2),
    ],
)
def test_a_dry_run_shows_what_each_method_reads(call, small, options, shown, slots):
    base = call(*small, "--dry-run", "--method", "cot", "--latent-paths", "1").stdout
    result = call(*small, "--dry-run", *options, "--latent-paths", "2" if options[0] == "--control" else "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.count(shown) > base.count(shown)
    assert result.stdout.count("[1]") == slots


def test_a_dry_run_as_json_is_one_document(call, small):
    resolved = json.loads(call(*small, "--dry-run", "--json").stdout)
    assert (resolved["num_questions"], resolved["soft_tokens"], resolved["task"]) == (1, 4, "arithmetic")


def shown(result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_a_file_gives_the_same_as_options_and_options_override_it(call, small, tmp_path):
    given = dict(zip(small[::2], small[1::2], strict=True))
    values = {name.removeprefix("--"): yaml.safe_load(value) for name, value in given.items()}
    file = tmp_path / "run.yaml"
    for keys in (values, {name.replace("-", "_"): value for name, value in values.items()}):
        file.write_text(yaml.safe_dump({**keys, "seed": 5}))
        assert shown(call("--config", file, "--dry-run", "--json")) == shown(
            call(*small, "--seed", 5, "--dry-run", "--json")
        )
    overridden = shown(call("--config", file, "--seed", 9, "--dry-run", "--json"))
    assert overridden == {**shown(call("--config", file, "--dry-run", "--json")), "seed": 9}


def test_adaptive_is_shown_and_may_stand_in_a_file(call, small, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("adaptive: 0.9\n")
    assert shown(call(*small, "--dry-run", "--json"))["adaptive"] is None
    for chosen in (("--config", file), ("--adaptive", "0.9")):
        assert shown(call(*small, *chosen, "--dry-run", "--json"))["adaptive"] == 0.9


def test_an_adaptive_run_ends_with_a_line_on_what_it_saved(call, small, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = call(*small, "--adaptive", "1", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "at most 2 completions" in result.stderr
    line = next(line for line in result.stdout.splitlines() if "samples saved" in line)
    assert "0 questions decided early" in line  # of two samples no first one decides
    assert "0 (0.0%)" in line


def test_the_same_run_from_a_file_continues_that_from_options(call, small, tmp_path):
    out = tmp_path / "run"
    assert call(*small, "--out", out).exit_code == 0
    before = (out / "samples.jsonl").read_bytes()
    given = dict(zip(small[::2], small[1::2], strict=True))
    values = {name.removeprefix("--"): yaml.safe_load(value) for name, value in given.items()}
    Path("run.yaml").write_text(yaml.safe_dump({**values, "out": str(out)}))
    result = call("--config", "run.yaml", "--json")
    assert shown(result)["complete"] is True
    assert (out / "samples.jsonl").read_bytes() == before
