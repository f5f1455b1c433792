"""The file of what is worked out once: all that was added is read again, whenever the process that wrote it was killed."""

from __future__ import annotations

import json

import pytest

from scaling.cache import Cache, made
from scaling.records.errors import UsageError

ONE, TWO, THREE = ({"name": name, "value": value} for name, value in (("one", 1.0), ("two", 2.0), ("größer", 3.0)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "values.jsonl"


def opened(path):
    return Cache(path, lambda line: (line["name"], float(line["value"])))


def held(path):
    """What a new process finds."""
    cache = opened(path)
    return {line["name"]: cache[line["name"]] for line in (ONE, TWO, THREE) if line["name"] in cache}


def written(*lines):
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_a_folder_that_takes_no_files_is_told_when_something_is_to_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    cache = opened(tmp_path / "file" / "values.jsonl")
    assert "one" not in cache
    with pytest.raises(UsageError, match=r"the cache folder .*file cannot be written .*: set SOFTCOTPP_CACHE"):
        cache.add([ONE])


def test_a_folder_of_another_user_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match=r"\(Permission denied\): set SOFTCOTPP_CACHE"):
        made(tmp_path)


def test_what_is_added_is_held_at_once_and_found_again(path):
    cache = opened(path)
    assert "one" not in cache
    cache.add([ONE, THREE])
    assert (cache["one"], cache["größer"]) == (1.0, 3.0)
    assert "two" not in cache
    assert held(path) == {"one": 1.0, "größer": 3.0}


@pytest.mark.parametrize("kept", range(len(written(TWO))))
def test_a_torn_line_costs_itself_alone(path, kept):
    """Of the last line any number of bytes may have reached the disk; with all but its end it is whole."""
    opened(path).add([ONE])
    with path.open("ab") as file:
        file.write(written(TWO)[:kept])
    whole = {"two": 2.0} if kept == len(written(TWO)) - 1 else {}
    assert held(path) == {"one": 1.0, **whole}
    opened(path).add([THREE])
    assert held(path) == {"one": 1.0, **whole, "größer": 3.0}


def test_no_line_is_written_but_those_that_are_added(path):
    opened(path).add([ONE])
    for _ in range(3):
        opened(path)
    assert path.read_bytes() == written(ONE)
    cache = opened(path)
    cache.add([TWO])
    cache.add([THREE])
    assert path.read_bytes() == written(ONE, TWO, THREE)


def test_a_torn_line_is_ended_once(path):
    opened(path).add([ONE])
    torn = written(TWO)[:-5]
    path.write_bytes(written(ONE) + torn)
    assert held(path) == {"one": 1.0}
    assert path.read_bytes() == written(ONE) + torn, "opening alone mends nothing"
    cache = opened(path)
    cache.add([TWO])
    cache.add([THREE])
    assert path.read_bytes() == written(ONE) + torn + b"\n" + written(TWO, THREE)


@pytest.mark.parametrize(
    "line", [b"", b"null", b"5", b"{}", b'{"name": "two"}', b'{"name": "two", "value": null}', b"\xff"]
)
def test_a_line_without_a_value_is_passed_over(path, line):
    opened(path).add([ONE])
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert held(path) == {"one": 1.0}
