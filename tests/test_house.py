"""The house rules that a machine can check: which room may import which, what stays light, what is never written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from scaling.engines.kinds import KINDS as ENGINES
from scaling.methods.kinds import KINDS

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("softcotpp", "contrastive", "scaling", "sweeps", "analysis")
ARROWS = {
    "softcotpp": ("contrastive", "scaling", "sweeps", "analysis"),
    "contrastive": (),
    "scaling": ("contrastive",),
    "sweeps": ("scaling", "contrastive"),
    "analysis": (),
}
ALLOWED_PACKAGES = {"analysis": ("scaling.records",)}
RECORDS = tuple(
    f"scaling.records.{path.stem}" for path in sorted((REPOSITORY / "scaling" / "records").glob("[a-z]*.py"))
)
LIGHT = (
    "softcotpp",
    "scaling",
    *RECORDS,
    "scaling.tasks.numbers",
    "scaling.tasks.equality",
    "scaling.tasks.catalogue",
    "scaling.config",
    "scaling.cli",
    "scaling.probe.cli",
    "analysis.cli",
)
LIGHT += (
    "scaling.training.cli",
    "sweeps.cli",
    "sweeps.sweep",
    "sweeps.display",
    "sweeps.report",
    "sweeps.local",
    "sweeps.ray_driver",
    "sweeps.ray_worker",
)
HEAVY = {"torch", "transformers", "scipy", "pandas"}
# spelled in two parts, as this file is searched too
ABSOLUTE_PLACES = [f"/{place}/" for place in ("work", "home", "root", "Users")]


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    """A source file's syntax tree. Do not change it."""
    return ast.parse(path.read_text())


def imports(tree: ast.AST, *, package: str) -> Iterator[str]:
    """Every module that the code names in an import, at any depth, lazy ones included, with relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def forbidden(room: str, tree: ast.AST, *, package: str) -> list[str]:
    """Imports of `room` that follow no arrow."""
    found = []
    for name in imports(tree, package=package):
        first = name.split(".")[0]
        by_room = first == room or first in ARROWS[room]
        allowed = ALLOWED_PACKAGES.get(room, ())
        by_module = any(name == module or name.startswith(f"{module}.") for module in allowed)
        on_the_way = any(module.startswith(f"{name}.") for module in allowed) and name != first
        if first in ROOMS and not (by_room or by_module or on_the_way):
            found.append(name)
        if room == "analysis" and first in ("torch", "transformers"):
            found.append(name)
    return found


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).parent.parts)


@pytest.mark.parametrize("room", [room for room in ROOMS if (REPOSITORY / room).is_dir()])
def test_arrows_run_one_way(room):
    files = sources(room)
    assert files
    found = {
        str(path.relative_to(REPOSITORY)): wrong
        for path in files
        if (wrong := forbidden(room, tree_of(path), package=package_of(path)))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("room", "code", "wrong"),
    [
        ("contrastive", "def f():\n    from scaling.records.errors import UsageError", True),
        ("contrastive", "from contrastive.thinker import Thinker", False),
        ("contrastive", "from ..scaling import errors", True),
        ("contrastive", "from . import thinker", False),
        ("scaling", "import sweeps.grid", True),
        ("scaling", "import contrastive.thinker, torch", False),
        ("sweeps", "import analysis", True),
        ("sweeps", "from scaling import run", False),
        ("analysis", "from scaling.records.records import Completion", False),
        ("analysis", "from scaling.records.journal import load", False),
        ("analysis", "from scaling.run import execute", True),
        ("analysis", "import torch", True),
    ],
)
def test_a_wrong_arrow_would_be_found(room, code, wrong):
    assert bool(forbidden(room, ast.parse(code), package=room)) is wrong


def python(code: str) -> list[str]:
    """The lines that the code prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_light_modules_load_no_torch():
    """One process imports all of them; the first one after which a heavy module is there is told."""
    code = f"""
import importlib, sys
for name in {LIGHT!r}:
    importlib.import_module(name)
    if heavy := {HEAVY!r} & set(sys.modules):
        sys.exit(print(name, *sorted(heavy)))
print("all are light")
"""
    assert python(code) == ["all are light"]


def test_help_and_plans_load_no_torch():
    """One process calls them all; the first one after which a heavy module is there is told."""
    commands: list[tuple[str, ...]] = [
        (f"{module}.cli", "--help") for module in ("scaling", "scaling.training", "scaling.probe", "analysis")
    ]
    commands += [("sweeps.cli", "--help"), ("sweeps.cli", "plan", "--help"), ("sweeps.cli", "plan", "scaling-curve")]
    code = f"""
import importlib, sys
from typer.testing import CliRunner
for module, *arguments in {commands!r}:
    done = CliRunner().invoke(importlib.import_module(module).app, arguments)
    print(module, *arguments, done.exit_code, *sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    assert python(code) == [f"{' '.join(command)} 0" for command in commands]


def unsafe(tree: ast.AST) -> list[str]:
    """Code from a model's repository, and pickles: `torch.load` without weights_only is one."""
    found = []
    safe = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and _loads_weights_only(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            found += [] if isinstance(node.value, ast.Constant) and node.value.value is False else ["trust_remote_code"]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save") and node not in safe:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {name.split(".")[0] for name in imports(node, package="")}
            found += sorted(names & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                found += [f"torch.{alias.name}" for alias in node.names if alias.name in ("load", "save")]
    return found


def _loads_weights_only(call: ast.Call) -> bool:
    only = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}.get("weights_only")
    return ast.unparse(call.func) == "torch.load" and only == "True"


def test_no_source_runs_foreign_code_or_reads_pickles():
    found = {path.as_posix(): wrong for path in sources(*ROOMS) if (wrong := unsafe(tree_of(path)))}
    # vLLM's endpoint takes embeddings in no other form; nothing is read from one
    assert {path.partition("scaling/")[2]: wrong for path, wrong in found.items()} == {
        "engines/server.py": ["torch.save"]
    }


@pytest.mark.parametrize(
    "code",
    [
        "f(trust_remote_code=True)",
        "f(trust_remote_code=x)",
        "import pickle",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "from torch import load",
    ],
)
def test_foreign_code_would_be_found(code):
    assert unsafe(ast.parse(code))


def test_no_source_uses_a_global_random_generator():
    """Every stream is a stable hash of run seed, question, path and sample, or a generator with a seed of its own."""
    pattern = re.compile(
        r"torch\.manual_seed|(?<!\.)\brandom\.(seed|random|randint|choice|shuffle)\(|np\.random\.(?!default_rng\(\w|Generator)"
    )
    found = [f"{path}: {hit.group()}" for path in sources(*ROOMS) for hit in pattern.finditer(path.read_text())]
    assert found == []


def test_no_file_names_a_place_on_somebodys_machine():
    files = sources(*ROOMS, "tests")
    assert Path(__file__) in files
    found = [f"{path}: {place}" for path in files for place in ABSOLUTE_PLACES if place in path.read_text()]
    assert found == []


def compared_methods(tree: ast.AST) -> list[str]:
    """Comparisons with a method's name: what a method has or does is asked of its kind."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            compared = [constant for side in (node.left, *node.comparators) for constant in ast.walk(side)]
            names = [one.value for one in compared if isinstance(one, ast.Constant) and one.value in KINDS]
            found += [ast.unparse(node)] if names else []
        if isinstance(node, ast.match_case):
            names = [
                one.value for one in ast.walk(node.pattern) if isinstance(one, ast.Constant) and one.value in KINDS
            ]
            found += names
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            found += [ast.unparse(node)] if "softcot" in ast.unparse(node.args[0]) else []
    return found


@pytest.mark.parametrize(
    "code",
    [
        'config.method == "lora"',
        'method != "softcot++"',
        'method in ("lora", "softcot")',
        'method.startswith("softcot")',
        'method not in {"cot"}',
        'match method:\n    case "lora" | "cot":\n        pass',
    ],
)
def test_a_comparison_with_a_methods_name_would_be_found(code):
    assert compared_methods(ast.parse(code))


def test_only_methods_ask_what_a_method_is_called():
    paths = {path.relative_to(REPOSITORY).as_posix(): path for path in sources(*ROOMS)}
    elsewhere = {name: path for name, path in paths.items() if not name.startswith("scaling/methods/")}
    found = {name: compared_methods(tree_of(path)) for name, path in elsewhere.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def compares_a_kind(tree: ast.AST) -> bool:
    """Whether the code compares something with the name of a kind of answers."""
    constants = [
        part.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant)
    ]
    return not {"number", "choice", "yes_no"}.isdisjoint(one for one in constants if isinstance(one, str))


def test_kinds_of_answers_are_told_apart_by_tasks_alone():
    tasks = REPOSITORY / "scaling" / "tasks"
    found = [path for path in sources(*ROOMS) if tasks not in path.parents and compares_a_kind(tree_of(path))]
    assert found == []
    assert compares_a_kind(ast.parse('x = 1 if task.kind == "number" else 2'))
    assert compares_a_kind(ast.parse('x = kind in ("choice", "yes_no")'))


def engines_compared(tree: ast.AST) -> list[str]:
    """Comparisons with the name of an engine."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
            names = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
            found += [ast.unparse(node)] if names & set(ENGINES) else []
    return found


def test_no_source_outside_the_engines_compares_an_engine_by_name():
    inside = REPOSITORY / "scaling" / "engines"
    files = [path for path in sources(*ROOMS) if inside not in path.parents]
    found = {path.as_posix(): wrong for path in files if (wrong := engines_compared(tree_of(path)))}
    assert found == {}


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("config.engine == 'vllm'", True),
        ("'openai' != config.engine", True),
        ("engine in ('vllm', 'openai')", True),
        ("KINDS[engine].in_process", False),
        ("package = 'vllm'", False),
    ],
)
def test_a_comparison_with_an_engine_would_be_found(code, wrong):
    assert bool(engines_compared(ast.parse(code))) is wrong


def private_names_of_others(room: str, tree: ast.AST, *, package: str) -> list[str]:
    """Imports of a private name, or of something in a private module, out of another room."""
    return [
        name
        for name in imports(tree, package=package)
        if name.split(".")[0] in ROOMS and name.split(".")[0] != room
        if any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    ]


def test_no_room_imports_a_private_name_of_another():
    found = {
        path.as_posix(): wrong
        for room in ROOMS
        for path in sources(room)
        if (wrong := private_names_of_others(room, tree_of(path), package=package_of(path)))
    }
    assert found == {}
    code = "from scaling.run import _held"
    assert private_names_of_others("sweeps", ast.parse(code), package="sweeps") == ["scaling.run._held"]
    assert private_names_of_others("scaling", ast.parse(code), package="scaling") == []
