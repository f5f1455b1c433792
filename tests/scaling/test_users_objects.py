"""Objects that a user names: in a file, in a module, by an entry point; and what goes wrong with them, in a sentence."""

from __future__ import annotations

import sys

import pytest

from scaling.plugins import is_plugin, load_object, refuse_unfit_arguments, source_sha256, users_code
from scaling.records.errors import UsageError


@pytest.fixture
def write(tmp_path):
    def written(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return written


def load(spec, **options):
    return load_object(spec, option="--thing", group="softcotpp.things", **options)


def test_a_file_is_loaded_once_for_each_content_and_may_import_its_neighbours(write):
    write("neighbour_of_mine.py", "LETTER = 'a'")
    file = write("own.py", "from neighbour_of_mine import LETTER\n\nclass Own:\n    letter = LETTER\n")
    before = list(sys.path)
    first = load(f"{file}:Own")
    assert first.letter == "a"
    assert load(f"{file}:Own") is first
    assert sys.path == before
    write("own.py", "class Own:\n    letter = 'b'\n")
    assert load(f"{file}:Own").letter == "b"


def test_dataclasses_and_nested_names_of_a_file(write):
    file = write("own.py", "from dataclasses import dataclass\n\n@dataclass\nclass Own:\n    letter: str = 'a'\n")
    assert load(f"{file}:Own.letter") == "a"


def test_a_module_may_lie_in_the_current_folder(write, tmp_path, monkeypatch):
    write("package_of_mine/__init__.py", "")
    write("package_of_mine/part.py", "def own():\n    return 7\n")
    monkeypatch.chdir(tmp_path)
    try:
        assert load("package_of_mine.part:own")() == 7
    finally:
        for name in ("package_of_mine", "package_of_mine.part"):
            sys.modules.pop(name, None)


def test_an_entry_point_of_an_installed_package(write, tmp_path, monkeypatch):
    write("own_plugin.py", "def own():\n    return 7\n")
    write("own_plugin-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: own-plugin\nVersion: 1.0\n")
    write("own_plugin-1.0.dist-info/entry_points.txt", "[softcotpp.things]\nseven = own_plugin:own\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("seven")() == 7
    with pytest.raises(UsageError, match=r"`--thing` is 'sevn': give five, seven, .*Did you mean `seven`\?"):
        load("sevn", known=["five"])
    sys.modules.pop("own_plugin", None)


def test_a_file_alone_is_enough_where_one_object_fits(write):
    one = write("one.py", "from pathlib import Path\n\nclass Own:\n    pass\n\nclass _Hidden:\n    pass\n")
    two = write("two.py", "class Own:\n    pass\n\nclass Other:\n    pass\n")
    none = write("none.py", "LETTER = 'a'\n")
    fits = lambda value: isinstance(value, type)  # noqa: E731
    assert load(one, fits=fits).__name__ == "Own"
    with pytest.raises(UsageError, match=r"has 2 of that kind \(Own, Other\): name the one that is meant"):
        load(two, fits=fits)
    with pytest.raises(UsageError, match="has nothing of that kind"):
        load(none, fits=fits)
    with pytest.raises(UsageError, match=r"names no object: give `.*one\.py:NAME`"):
        load(one)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_to_be_found\n", r"own\.py, line 1 \(ModuleNotFoundError: No module named 'nowhere"),
        ("class Own:\n    def f(self x): pass\n", r"own\.py, line 2 \(SyntaxError"),
        ("\n\nraise SystemExit('enough')\n", r"own\.py, line 3 \(SystemExit: enough\)"),
        ("import json\n\njson.loads('{')\n", r"own\.py, line 3 \(JSONDecodeError"),
        ("class Owm:\n    pass\n", r"has no `Own`\. Did you mean `Owm`\?"),
    ],
)
def test_a_file_that_fails_is_told_with_its_line(write, text, said):
    file = write("own.py", text)
    for _ in range(2):
        with pytest.raises(UsageError, match=said) as error:
            load(f"{file}:Own")
        assert str(error.value).startswith(f"`--thing` {file}:Own")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nowhere.py:Own", r"nowhere\.py cannot be read \(No such file or directory\)"),
        (
            "nowhere_to_be_found:Own",
            "there is no module nowhere_to_be_found, neither installed nor in the current folder",
        ),
        ("json:", "names no object: give `json:NAME`"),
        ("json:dunps", r"has no `dunps`\. Did you mean `dumps`\?"),
    ],
)
def test_what_is_not_there_is_one_sentence(spec, said):
    with pytest.raises(UsageError, match=said):
        load(spec)


def test_names_of_their_own_are_no_plugins():
    assert [is_plugin(one) for one in ("cot", "own.py", "own.py:Own", "own.part:Own")] == [False, True, True, True]


def test_the_checksum_is_of_the_source_and_of_the_name_and_not_of_the_place(write):
    text = "class Own:\n    pass\n\nclass Other:\n    pass\n"
    here, there = write("own.py", text), write("elsewhere/own.py", text)
    assert source_sha256(load(f"{here}:Own")) == source_sha256(load(f"{there}:Own"))
    assert source_sha256(load(f"{here}:Own")) != source_sha256(load(f"{here}:Other"))
    before = source_sha256(load(f"{here}:Own"))
    write("own.py", f"{text}\n# more\n")
    assert source_sha256(load(f"{here}:Own")) != before


def test_a_lack_of_memory_and_errors_that_are_told_already_pass_through():
    for error in (MemoryError(), RuntimeError("out of memory"), UsageError("told")):
        with pytest.raises(type(error)) as seen, users_code("own.py:Own", option="--thing"):
            raise error
        assert seen.value is error


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
