"""Rows of files, folders and saved data sets: values stay what they are, and an error names the place."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.records.errors import UsageError
from scaling.tasks.formats import holds_split, read_rows

ROW = {"question": "1 + 1?", "answer": "2"}
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1)
VALUES = st.none() | st.booleans() | st.integers() | TEXTS | st.lists(TEXTS)


def fields(place: Path, split: str = "test") -> list[dict[str, Any]]:
    return [row for _, row in read_rows(place, split=split)]


def refusal(place: Path, split: str = "test") -> str:
    with pytest.raises(UsageError) as caught:
        read_rows(place, split=split)
    return str(caught.value)


def parquet(place: Path, *rows: dict[str, Any]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows or (ROW,)).to_parquet(place)
    return place


def line(place: Path, row: dict[str, Any] = ROW) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(row))
    return place


@given(st.lists(st.dictionaries(TEXTS, VALUES, min_size=1), min_size=1))
def test_json_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("json")
    (folder / "a.json").write_text(json.dumps(rows))
    (folder / "l.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert fields(folder / "a.json") == rows
    assert fields(folder / "l.jsonl") == rows


@given(st.lists(st.tuples(TEXTS, st.text(st.characters(codec="utf-8", exclude_characters="\r\0"))), min_size=1))
def test_texts_of_a_csv_file_stay_texts(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    place = tmp_path_factory.mktemp("csv") / "t.csv"
    with place.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])
    assert fields(place) == [{"question": one, "answer": two} for one, two in rows]


@pytest.mark.parametrize("value", ["NA", "007", "1e5", "None", "nan", "TRUE", "", "1,5", " 3 ", "two\nlines"])
def test_no_entry_is_taken_for_something_else(tmp_path: Path, value: str) -> None:
    pandas.DataFrame([{"question": "?", "answer": value}]).to_csv(tmp_path / "t.csv", index=False)
    assert fields(tmp_path / "t.csv") == [{"question": "?", "answer": value}]


@pytest.mark.parametrize("number", ["0.10", "123456789012345678901234567890", "0.1234567890123456789", "-1E+2"])
def test_numbers_in_json_keep_their_digits(tmp_path: Path, number: str) -> None:
    (tmp_path / "n.jsonl").write_text(f'{{"answer": {number}}}')
    (tmp_path / "n.json").write_text(f'[{{"answer": {number}}}]')
    for name in ("n.jsonl", "n.json"):
        assert str(fields(tmp_path / name)[0]["answer"]) == number


def test_parquet_gives_plain_values(tmp_path: Path) -> None:
    rows = [{"id": 1, "options": ["a", "b"], "inner": {"label": ["A"]}, "share": 0.5, "right": True}]
    assert fields(parquet(tmp_path / "p.parquet", *rows)) == rows
    assert type(fields(tmp_path / "p.parquet")[0]["options"]) is list


@pytest.mark.parametrize(("pack", "ending"), [(gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz")])
def test_compressed_texts_are_unpacked(tmp_path: Path, pack: Any, ending: str) -> None:
    written = json.dumps(ROW)
    for name, text in {"q.jsonl": written, "q.csv": "question,answer\n1 + 1?,2\n", "q.json": f"[{written}]"}.items():
        (tmp_path / f"{name}{ending}").write_bytes(pack(text.encode()))
        assert fields(tmp_path / f"{name}{ending}") == [ROW]
    (tmp_path / f"cut.jsonl{ending}").write_bytes(pack(json.dumps(ROW).encode() * 50)[:-9])
    assert "cannot be unpacked" in refusal(tmp_path / f"cut.jsonl{ending}")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.csv", "question,answer\n1?,2\n2?,3,4\n", "line 3 must have 2 entries, as the first line names"),
        ("q.csv", 'question,answer\n"a\nb",2\n2?\n', "line 4 must have 2 entries"),
        ("q.csv", "a,b,a\n1,2,3\n", "line 1 must name each column once, and names `a` twice"),
        ("q.csv", 'question,answer\n1?,"2\n', "line 2 is not valid"),
        ("q.csv", b"question,answer\n1?,2\n\xff?,3\n", "line 3 must be valid UTF-8"),
        ("q.json", '[{"question": "1?"}, 7]', "entry 2 must be one JSON object, not 7"),
        ("q.json", '[{"question": "1?"}', "is not valid JSON"),
        ("q.json", '[{"question": "\\ud800"}]', "entry 1 must be valid UTF-8"),
        ("q.json", '{"train": [{"a": 1}], "test": [{"a": 1}]}', "must hold one list of rows, and has `train`, `test`"),
        ("q.json", '{"nfl": {"passage": "", "qa_pairs": []}}', "holds an object with `nfl`"),
        ("q.txt", "question,answer\n1?,2\n", "must have a name that tells its format (.jsonl"),
        ("q.txt", "1?||2\n\n3?\n", "line 3 must hold a question and its solution with one `||` between them, and has none"),
        ("q.txt", "1?||2||3\n", "line 1 must hold a question and its solution with one `||` between them, and has 2"),
        ("q.csv", b"\xff\xfe1", "must be valid UTF-16"),
        ("q.json", "7", "must hold objects, one a row, not 7"),
        ("q.parquet", b"PAR1 and no more", "is no whole Parquet file"),
        ("q.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0", "run `git lfs pull`"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_told_with_its_place(tmp_path: Path, name: str, content: Any, said: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(tmp_path / name)
    assert message.startswith("`--data`")
    assert str(tmp_path / name) in message
    assert said in message


def test_a_zip_file_is_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "q.zip", "w") as file:
        file.writestr("q.jsonl", json.dumps(ROW))
    assert "unpack it first" in refusal(tmp_path / "q.zip")


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_is_read_however_its_program_has_saved_it(
    tmp_path: Path, encoding: str, delimiter: str, ending: str
) -> None:
    row = {"question": "Was ist 1, 2; 3?", "answer, or none": "2,5", "note": "für\tmich"}
    pandas.DataFrame([row]).to_csv(tmp_path / f"q.{ending}", index=False, sep=delimiter, encoding=encoding)
    assert fields(tmp_path / f"q.{ending}") == [row]


def test_semicolons_and_a_byte_order_mark_of_spreadsheets_are_understood(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_bytes(b"\xef\xbb\xbfquestion;answer\r\n1,5 + 1?;2,5\r\n")
    assert fields(tmp_path / "q.csv") == [{"question": "1,5 + 1?", "answer": "2,5"}]


@pytest.mark.parametrize(
    "names",
    [
        ["test.csv"],
        ["test.jsonl", "train.jsonl"],
        ["data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet", "data/train-00000-of-00001.parquet"],
        ["main/test/0000.parquet", "main/test/0001.parquet", "main/train/0000.parquet"],
        ["test/0000.parquet"],
        [".git/test.jsonl", "test.json", "README.md"],
        ["test.jsonl", "old/test.jsonl"],
    ],
)
def test_the_files_of_a_split_are_found_in_a_folder(tmp_path: Path, names: list[str]) -> None:
    """The rows of the split's files come in the order of the files, and no other file's."""
    for name in names:
        row = ROW | {"from": name}
        if name.endswith(".parquet"):
            parquet(tmp_path / name, row)
        elif name.endswith(".csv"):
            pandas.DataFrame([row]).to_csv(tmp_path / name, index=False)
        else:
            line(tmp_path / name, row)
    found = [row["from"] for row in fields(tmp_path)]
    assert found == [name for name in names if "test" in name and not name.startswith((".", "old"))]
    assert holds_split(tmp_path, "test")
    assert holds_split(tmp_path, "train") == any("train" in name for name in names)
    assert not holds_split(tmp_path, "validation")


@pytest.mark.parametrize("name", ["validation", "dev", "valid", "val"])
def test_the_validation_split_has_four_names(tmp_path: Path, name: str) -> None:
    line(tmp_path / f"{name}.jsonl")
    assert fields(tmp_path, "validation") == [ROW]


@pytest.mark.parametrize("names", [["dev.jsonl", "val.jsonl"], ["valid/0000.jsonl", "dev/0000.jsonl"]])
def test_two_files_that_may_be_the_validation_split_are_named(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        line(tmp_path / name)
    message = refusal(tmp_path, "validation")
    assert all(part in message for part in ["for `--split validation`, and has 2", *names])
    line(tmp_path / names[0].replace("dev", "validation").replace("valid/", "validation/"))
    assert fields(tmp_path, "validation") == [ROW]


@pytest.mark.parametrize(("name", "text"), [("q.json", "{}"), ("q.json", "[]"), ("q.jsonl", ""), ("q.csv", "")])
def test_a_file_of_nothing_has_no_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert fields(tmp_path / name) == []


@pytest.mark.parametrize("name", ["hf:", "hf:/name", "hf::main", "hf:a/b/c"])
def test_what_names_no_data_set_of_the_hub_is_refused_without_asking_it(name: str) -> None:
    assert f"must name a data set as hf:OWNER/NAME[:CONFIG], and is `{name}`" in refusal(Path(name))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["test.csv", "test.jsonl"], ["must hold one file for `--split test`, and has 2", "test.csv`", "test.jsonl`"]),
        (["main/test.jsonl", "socratic/test.jsonl"], ["has 2: give one of", "/main`", "/socratic`"]),
        (["data/test-00001-of-00003.parquet"], ["must hold all 3 parts of `test`, and has 1"]),
        (["quiz.jsonl"], ["has one that is called otherwise: give `--data", "quiz.jsonl`"]),
        (["train.csv", "dev.csv"], ["`--split` must be", "none for `test`: give one of `train`, `validation`"]),
        (["README.md"], ["has no file of rows"]),
    ],
)
def test_a_folder_that_is_not_clear_is_refused(tmp_path: Path, names: list[str], said: list[str]) -> None:
    for name in names:
        parquet(tmp_path / name) if name.endswith(".parquet") else line(tmp_path / name)
    message = refusal(tmp_path)
    assert all(part in message for part in said)


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="needs the extra `hub`")


def test_a_saved_data_set_has_its_own_splits(tmp_path: Path, datasets: Any) -> None:
    rows = datasets.Dataset.from_list([ROW])
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(str(tmp_path / "several"))
    assert fields(tmp_path / "several", "train") == [ROW]
    assert "give one of `train`, `dev`" in refusal(tmp_path / "several", "test")
    assert holds_split(tmp_path / "several", "train")
    assert not holds_split(tmp_path / "several", "test")
    rows.save_to_disk(str(tmp_path / "unnamed"))
    assert fields(tmp_path / "unnamed") == [ROW]
    datasets.Dataset.from_list([ROW], split="train").save_to_disk(str(tmp_path / "train"))
    assert fields(tmp_path / "train", "train") == [ROW]
    assert "give one of `train`" in refusal(tmp_path / "train", "test")
    (tmp_path / "unnamed" / "data-00000-of-00001.arrow").write_bytes(b"")
    assert "save the data set again" in refusal(tmp_path / "unnamed")


def test_a_class_is_its_name_and_not_its_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, datasets: Any) -> None:
    kinds = {"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["no", "yes"])}
    rows = [{"question": str(number), "answer": number} for number in (1, 0, -1, None)]
    data = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    for place in (tmp_path / "rows.parquet", tmp_path / "saved", Path("hf:owner/name")):
        assert [row["answer"] for row in fields(place)] == ["yes", "no", None, None]


@pytest.mark.parametrize(
    ("place", "asked"),
    [("hf:owner/name", ("owner/name", None)), ("hf:owner/name:main", ("owner/name", "main"))],
)
def test_a_data_set_of_the_hub_is_asked_for_by_its_name(
    monkeypatch: pytest.MonkeyPatch, datasets: Any, place: str, asked: tuple[str, str | None]
) -> None:
    calls = []

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        calls.append((name, config))
        if split != "test":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['test'].")
        return datasets.Dataset.from_list([ROW])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows(Path(place), split="test") == [(f"`--data`: {place} row 1", ROW)]
    assert calls == [asked]
    assert "owner/name from the Hub (Unknown split \"train\". Should be one of ['test'].)" in refusal(
        Path(place), "train"
    )
