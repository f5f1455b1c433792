"""Files that are replaced in one step: a reader finds the old one or the new one, whole, whoever writes at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from scaling.records.files import replaced, write_whole


def test_many_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "file.json"
    texts = [str(number) * 50_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_whole(path, text), texts * 5))
    assert path.read_text() in texts
    assert [one.name for one in tmp_path.iterdir()] == ["file.json"]


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path, sync, named):
    path, partial = tmp_path / "file.bin", tmp_path / "file.bin.tmp"
    path.write_bytes(b"old")
    if named:
        partial.write_bytes(b"what a kill left, which is longer")
    with replaced(path, partial=partial if named else None, sync=sync) as new:
        assert (new == partial) == named
        new.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(RuntimeError), replaced(path, partial=partial if named else None, sync=sync) as new:  # noqa: PT012
        new.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"new"
    assert [one.name for one in tmp_path.iterdir()] == ["file.bin"]
