"""What an option is stands in its declaration alone: no other module keeps a list of options, no function takes them all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.config import RunConfig
from scaling.probe.config import ProbeConfig
from scaling.records.settings import settings_of
from scaling.training.config import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("contrastive", "scaling", "sweeps", "analysis")
SOURCES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
OF_OTHERS = {  # says which options an engine takes; the keys of a task file, some of which are called as options are
    "scaling/engines/kinds.py",
    "scaling/tasks/yaml_task.py",
}
OPTIONS = {*RunConfig.model_fields, *TrainConfig.model_fields, *ProbeConfig.model_fields}
FACTS = {fact: name for name, own in settings_of(RunConfig).items() for fact in own.facts}
FEW = 2  # options that may stand side by side in a list
MOST = 12  # parameters of a function


def lists_of_options(tree: ast.AST) -> Iterator[str]:
    """Tuples, lists and sets that name more than a few options, or what follows from them in run.json, and mappings that say
    something of each option. A mapping of options to their values, as settings are made from, is none."""
    for node in ast.walk(tree):
        said, facts = (node.elts, FACTS) if isinstance(node, ast.Tuple | ast.List | ast.Set) else ([], {})
        if isinstance(node, ast.Dict) and all(_is_constant(value) for value in node.values):
            said = [key for key in node.keys if key]
        words = [one.value for one in said if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        named = {facts.get(word, word) for word in (word.removeprefix("train.") for word in words)} & OPTIONS
        if len(named) > FEW:
            yield f"line {node.lineno}: {', '.join(sorted(named))}"


def _is_constant(node: ast.AST) -> bool:
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return all(isinstance(part, ast.Constant) for part in parts)


def long_signatures(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = sum(map(len, (node.args.posonlyargs, node.args.args, node.args.kwonlyargs)))
            if count > MOST:
                yield f"{node.name} has {count}"


def found(search) -> dict[str, list[str]]:
    hits = {str(path.relative_to(REPOSITORY)): list(search(ast.parse(path.read_text()))) for path in SOURCES}
    return {path: own for path, own in hits.items() if own}


def test_no_module_keeps_a_list_of_options():
    assert len(SOURCES) > 100
    assert set(found(lists_of_options)) == OF_OTHERS


def test_no_function_has_more_parameters_than_can_be_kept_in_mind():
    assert found(long_signatures) == {}


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("FREE = ('out', 'device', 'batch_size')", True),
        ("x in {'seed', 'thinker_sha256', 'limit', other}", True),
        ("('train.seed', 'data', 'limit')", True),
        ("{'out': 'a folder', 'resume': 'goes on', 'voter': ('a', 'b')}", True),
        ("('assistant', 'assistant_fingerprint', 'seed')", False),
        ("{'task': config.task, 'limit': config.limit, 'seed': 1}", False),
        ("('tokens', 'seconds', 'seed')", False),
    ],
)
def test_a_list_of_options_would_be_found(code, is_one):
    assert bool(list(lists_of_options(ast.parse(code)))) is is_one


def test_a_long_signature_would_be_found():
    names = ", ".join(f"a{number}" for number in range(MOST))
    assert list(long_signatures(ast.parse(f"def f({names}, *, b): ..."))) == [f"f has {MOST + 1}"]
    assert not list(long_signatures(ast.parse(f"def f({names}, *b, **c): ...")))
