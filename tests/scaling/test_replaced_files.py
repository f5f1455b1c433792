"""A file that many write at once is always one of theirs, whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from scaling.records.files import write_whole


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
