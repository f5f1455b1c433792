"""Objects from outside: where they are looked for, and the one sentence for what is wrong with them."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest

from scaling.records.errors import UsageError
from scaling.records.plugins import installed, is_spec, load_object

GROUP = "softcotpp.tests"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder; what is imported from it is forgotten."""
    known, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def load(spec):
    return load_object(spec, option="--voter", group=GROUP)


@pytest.fixture
def package(folder, monkeypatch):
    """An installed package with an entry point `mean` of our group."""
    site = folder / "site"
    (site / "theirs-1.0.dist-info").mkdir(parents=True)
    (site / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (site / "theirs-1.0.dist-info" / "entry_points.txt").write_text(f"[{GROUP}]\nmean = theirs:functions.mean\n")
    (site / "theirs.py").write_text("class functions:\n    mean = 'the mean'\n")
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.parametrize("spec", ["mine.py:vote", "./mine.py:vote", "mine.py", "mine:vote"])
def test_an_object_comes_with_its_file_and_checksum(folder, spec):
    source = "def vote():\n    return 'ours'\ndef _helper(): ...\n"
    (folder / "mine.py").write_text(source)
    loaded = load(spec)
    assert loaded.object() == "ours"
    assert (loaded.name, loaded.file.name) == (spec, "mine.py")
    assert loaded.sha256 == hashlib.sha256(source.encode()).hexdigest()


@pytest.mark.usefixtures("package")
def test_an_entry_point_is_found_by_its_name():
    assert load("mean").object == "the mean"
    assert installed(GROUP) == ["mean"]


def test_a_file_hides_no_module_and_imports_its_neighbours(folder):
    (folder / "away").mkdir()
    (folder / "away" / "json.py").write_text(
        "import neighbour\nfrom json import dumps\nvalue = dumps([neighbour.value])\n"
    )
    (folder / "away" / "neighbour.py").write_text("value = 7\n")
    assert load("away/json.py:value").object == "[7]"
    assert sys.modules["json"] is json


def test_a_file_is_run_once_and_again_when_it_has_changed(folder):
    (folder / "mine.py").write_text("class Vote: ...\n")
    first = load("mine.py:Vote").object
    assert load("mine.py:Vote").object is first
    (folder / "mine.py").write_text("class Vote:\n    new = True\n")
    assert load("mine.py:Vote").object.new


def test_a_module_of_the_folder_goes_first_and_what_it_imports_last(folder):
    """Beside a folder named like a module that it imports, as `analysis` or `colorsys`."""
    (folder / "this.py").write_text("import colorsys\nvalue = colorsys.rgb_to_hsv(0, 0, 0)\n")  # also a standard module
    (folder / "colorsys").mkdir()
    (folder / "colorsys" / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    assert load("this:value").object == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("source", "spec", "said"),
    [
        ("def vote(:\n", "mine.py:vote", "cannot be loaded; put the file right: .*mine.py line 1: SyntaxError"),
        ("def vote(:\n", "mine:vote", "cannot be loaded; put the file right: .*mine.py line 1: SyntaxError"),
        ("a = 1\nb = a / 0\n", "mine.py:vote", "mine.py line 2: ZeroDivisionError: division by zero"),
        ("a = 1\nb = a / 0\n", "mine:vote", "mine.py line 2: ZeroDivisionError: division by zero"),
        ("\nimport no_such_thing\n", "mine.py:vote", "mine.py line 2: ModuleNotFoundError: .*no_such_thing"),
        ("\nimport no_such_thing\n", "mine:vote", r"cannot be imported \(.*mine.py line 2: .*no_such_thing"),
        ("raise SystemExit(3)\n", "mine.py:vote", "mine.py line 1: SystemExit"),
        ("def vote(): ...\n", "mine.py:vota", "mine.py has no vota.*Did you mean `vote`"),
        ("def vote(): ...\n", "mine:vota", "mine.py has no vota.*Did you mean `vote`"),
        ("a = 1\n", "mine.py", "defines 0 functions and classes"),
        ("def a(): ...\ndef b(): ...\n", "mine.py", "defines 2 functions and classes"),
        ("", "other.py:vote", "other.py cannot be read"),
        ("", "other:vote", "cannot be imported .*other"),
        ("", "nobody", "is not known; write `file.py:name`"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder, source, spec, said):
    (folder / "mine.py").write_text(source)
    with pytest.raises(UsageError, match=said) as error:
        load(spec)
    assert str(error.value).startswith(f"`--voter` {spec}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["flat", "org/model", "a b:c", "folder/judge:score", ":vote", "mine:", "C:/x"])
def test_other_names_are_none(name):
    assert not is_spec(name)
