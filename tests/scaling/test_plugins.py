"""Objects that a user names: in a file, in a module, by an entry point; and what goes wrong with them, in a sentence."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import sys

import pytest

from scaling.records.errors import UsageError
from scaling.records.plugins import installed, is_spec, load_object, refuse_unfit_arguments, refuse_unknown, users_code

GROUP = "softcotpp.things"


@pytest.fixture(autouse=True)
def write(tmp_path, monkeypatch):
    """Writes a file in the current folder, which is empty at first. What was imported from it is forgotten."""
    known, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)

    def written(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    yield written
    assert sys.path == path, "what is loaded changes what others import"
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture
def package(write, tmp_path):
    """An installed package with an entry point `seven` of our group."""
    write("site/theirs-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    write("site/theirs-1.0.dist-info/entry_points.txt", f"[{GROUP}]\nseven = theirs:functions.seven\n")
    write("site/theirs.py", "class functions:\n    seven = 7\n")
    sys.path.insert(0, str(tmp_path / "site"))
    yield
    sys.path.remove(str(tmp_path / "site"))


def load(spec, **options):
    return load_object(spec, option="--thing", group=GROUP, **options)


def refusal(spec, **options):
    with pytest.raises(UsageError) as error:
        load(spec, **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("`--thing` " + spec, f"`--thing` is {spec!r}"))
    return error


@pytest.mark.parametrize("spec", ["mine.py:vote", "./mine.py:vote", "mine.py", "mine:vote"])
def test_an_object_comes_with_its_name_and_file(write, spec):
    source = "def vote():\n    return 'ours'\ndef _helper(): ...\n"
    file = write("mine.py", source)
    loaded = load(spec)
    assert loaded.object() == "ours"
    assert (loaded.name, loaded.file) == ("vote", file)
    assert loaded.source_sha256 == hashlib.sha256(source.encode()).hexdigest()


@pytest.mark.usefixtures("package")
def test_an_entry_point_of_an_installed_package_is_not_loaded_until_it_is_needed():
    assert list(installed(GROUP)) == ["seven"]
    refuse_unknown("seven", option="--thing", group=GROUP)
    assert "theirs" not in sys.modules
    assert load("seven").object == 7
    assert load("seven").sha256 == load("theirs:functions.seven").sha256
    assert refusal("sevn", known=["five"]).match("is 'sevn': give seven, five, or .*Did you mean `seven`?")


def test_dataclasses_and_nested_names_of_a_file(write):
    write("own.py", "from dataclasses import dataclass\n\n@dataclass\nclass Own:\n    letter: str = 'a'\n")
    assert load("own.py:Own.letter").object == "a"


def test_a_module_may_lie_in_a_package_in_the_current_folder(write):
    write("package_of_mine/__init__.py", "from package_of_mine.part import own\n")
    write("package_of_mine/part.py", "def own():\n    return 7\n")
    loaded = load("package_of_mine:own")
    assert loaded.object() == 7
    assert loaded.file == load("package_of_mine.part:own").file
    assert loaded.sha256 != load("package_of_mine.part:own").sha256


def test_a_file_hides_no_module_and_imports_its_neighbours(write):
    """Nor does a folder beside it that is called as an installed module."""
    write(
        "away/json.py", "import colorsys\nimport neighbour\nfrom json import dumps\nvalue = dumps([neighbour.value])\n"
    )
    write("away/neighbour.py", "value = 7\n")
    for name in ("away/colorsys", "colorsys"):
        write(f"{name}/__init__.py", "raise RuntimeError('the wrong one')\n")
    write("this_of_mine.py", "import colorsys\nvalue = colorsys.rgb_to_hsv(0, 0, 0)\n")
    sys.modules.pop("colorsys", None)
    assert load("away/json.py:value").object == "[7]"
    assert sys.modules["json"] is json
    assert load("this_of_mine:value").object == (0.0, 0.0, 0)


def test_a_file_is_run_once_and_again_when_it_has_changed(write):
    write("mine.py", "class Vote: ...\n")
    first = load("mine.py:Vote")
    assert load("mine.py:Vote").object is first.object
    write("mine.py", "class Vote:\n    new = True\n")
    assert load("mine.py:Vote").object.new
    assert load("mine.py:Vote").sha256 != first.sha256


def test_the_checksum_of_a_module_is_of_what_was_loaded(write):
    write("module_of_mine.py", "own = 1\n")
    before = load("module_of_mine:own")
    write("module_of_mine.py", "own = 200\n")
    assert load("module_of_mine:own") == before
    sys.path.append(".")
    importlib.reload(sys.modules["module_of_mine"])
    sys.path.remove(".")
    after = load("module_of_mine:own")
    assert (after.object, after.sha256 == before.sha256) == (200, False)


def test_a_file_alone_is_enough_where_one_object_fits(write):
    write("one.py", "from pathlib import Path\nfrom typing import Callable\n\nclass Own: ...\nclass _Hidden: ...\n")
    write("two.py", "class Own: ...\nclass Other: ...\n\nletters = dict(a=1)\n")
    write("none.py", "LETTER = 'a'\n")
    assert load("one.py").name == "Own"
    assert load("two.py", fits=lambda value: value == {"a": 1}).name == "letters"
    refusal("two.py").match(r"has 2 of that kind \(Own, Other\): name the one that is meant, as in `.*two\.py:Own`")
    refusal("none.py").match("has nothing of that kind")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nimport nowhere_to_be_found\n", r"own\.py, line 2 \(ModuleNotFoundError: No module named 'nowhere"),
        ("class Own:\n    def f(self x): pass\n", r"own\.py, line 2 \(SyntaxError"),
        ("\n\nraise SystemExit('enough')\n", r"own\.py, line 3 \(SystemExit: enough\)"),
        ("import json\n\njson.loads('{')\n", r"own\.py, line 3 \(JSONDecodeError"),
        ("class Owm:\n    pass\n", r"own\.py has no `Own`\. Did you mean `Owm`\?"),
    ],
)
@pytest.mark.parametrize("spec", ["own.py:Own", "own:Own"])
def test_a_file_that_fails_is_told_with_its_line(write, spec, text, said):
    write("own.py", text)
    for _ in range(2):
        refusal(spec).match(said)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nowhere.py:Own", r"nowhere\.py cannot be read \(No such file or directory\)"),
        ("mime.py", r"Did you mean `mine\.py`\?"),
        (
            "nowhere_to_be_found:Own",
            "there is no module nowhere_to_be_found, neither installed nor in the current folder",
        ),
        ("json:dunps", r"has no `dunps`\. Did you mean `dumps`\?"),
        ("nobody", "is .nobody.: give one of your own as `FILE.py:NAME`"),
    ],
)
def test_what_is_not_there_is_one_sentence(write, spec, said):
    write("mine.py", "")
    refusal(spec).match(said)


@pytest.mark.parametrize("spec", ["own.py", "own.py:Own", "C:/own.py:Own.part", "own:Own", "own.part:Own.part"])
def test_what_names_an_object(spec):
    assert is_spec(spec)


@pytest.mark.parametrize(
    "name", ["flat", "org/model", "a b:c", "folder/judge:score", ":vote", "mine:", "own.py:", "C:/x"]
)
def test_other_names_are_none(name):
    assert not is_spec(name)


def test_the_checksum_is_of_the_source_and_of_the_name_and_not_of_the_place(write):
    text = "class Own:\n    pass\n\nclass Other:\n    pass\n"
    here, there = write("own.py", text), write("elsewhere/own.py", text)
    assert load(f"{here}:Own").sha256 == load(f"{there}:Own").sha256
    assert load(f"{here}:Own").sha256 != load(f"{here}:Other").sha256


IN_A_NOTEBOOK = """
class Own:
    letters = ("a", 1)
    @keeps
    def f(self, scale=0.1):
        return [one + scale for one in (1, 2)]
    @property
    def g(self):
        return self.f() + ["b"]
"""


def test_the_checksum_of_a_class_without_a_file_is_of_what_it_does(monkeypatch):
    """As in a notebook, where only the compiled code is left."""

    def keeps(function):
        return functools.wraps(function)(lambda *values: function(*values))

    def checksum(text):
        module = type(sys)("cells")
        monkeypatch.setitem(sys.modules, "cells", module)
        module.keeps = keeps
        exec(text, module.__dict__)
        assert load("cells:Own").file is None
        return load("cells:Own").sha256

    same = checksum(IN_A_NOTEBOOK)
    assert checksum(f"\n\n{IN_A_NOTEBOOK}") == same
    for before, after in (
        ("0.1", "0.2"),
        ("(1, 2)", "(1, 3)"),
        ("+ scale", "- scale"),
        ('"a"', '"c"'),
        ('["b"]', '["c"]'),
    ):
        assert checksum(IN_A_NOTEBOOK.replace(before, after)) != same, (before, after)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("out of memory"), UsageError("told"), KeyboardInterrupt()]
)
def test_a_lack_of_memory_and_errors_that_are_told_already_pass_through(write, error):
    with pytest.raises(type(error)) as seen, users_code("own.py:Own", option="--thing"):
        raise error
    assert seen.value is error
    write("own.py", f"from scaling.records.errors import UsageError\n\nraise {error!r}\n")
    with pytest.raises(type(error)):
        load("own.py:Own")


def test_what_fails_later_is_told_with_the_line_of_the_users_file(write):
    loaded = load(write("own.py", "import json\n\ndef own(text):\n    return json.loads(text)\n"))
    where = users_code("own.py", option="--thing", file=loaded.file)
    with pytest.raises(UsageError, match=r"own\.py, line 4 \(JSONDecodeError"), where:
        loaded.object("{")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"steps": 3, "scael": 1},
            r"`--thing-args` does not fit own\.py:Own \(.*\): it takes steps, scale\. Did you mean `scale`",
        ),
        ({}, "missing a required argument: 'steps'"),
    ],
)
def test_arguments_that_a_factory_does_not_take(given, said):
    def own(surroundings, steps, scale=1.0):
        return surroundings, steps, scale

    refuse_unfit_arguments(own, {"steps": 3}, "own.py:Own", option="--thing-args")
    with pytest.raises(UsageError, match=said):
        refuse_unfit_arguments(own, given, "own.py:Own", option="--thing-args")
