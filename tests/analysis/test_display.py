"""What a terminal of 80 columns shows of a report: no line longer, no word broken, nothing left out."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from analysis.display import fitted, show
from analysis.load import load
from analysis.methods import group
from analysis.results import Settings, results
from analysis.tables import Table, tables

WIDTH = 80


def shown(table: Table, width: int = WIDTH) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    for part in fitted(table, width):
        console.print(part, highlight=False)
    return console.file.getvalue()


@pytest.fixture(scope="session")
def found(make_run, random_answers):
    names = ("SoftCoT++ [trained on gsm8k, shuffled]", "Prompt tuning-SC, 8-shot", "SoftCoT-Dropout", "a", "CoT-SC")
    runs = [(name, load(make_run(random_answers(k, 6, 2, 2), temperature=k))) for k, name in enumerate(names)]
    return results(group(runs, common=False), Settings(), lambda _: None)


def test_every_table_fits_and_breaks_no_word(found):
    for table in tables(found, every_axis=False):
        text = shown(table)
        assert max(map(len, text.splitlines())) <= WIDTH
        words = set(text.replace("│", " ").replace("┃", " ").split())
        for cells in (table.columns, *table.rows):
            assert {word for cell in cells for word in cell.split()} <= words, table.title
        assert "…" not in text


@given(
    row=st.text("xy", min_size=1, max_size=30),
    methods=st.lists(
        st.tuples(st.text("ab ", min_size=1, max_size=60).filter(str.strip), st.text("xy", min_size=1, max_size=30)),
        min_size=1,
        max_size=5,
    ),
)
@example(
    row="intraclass correlation",
    methods=[
        ("SoftCoT++ with prompt tutor [trained on arithmetic]", "+0.400 (+0.000 to +0.571)"),
        ("CoT-SC with prompt tutor", "10.0 to 10.0"),
    ],
)
def test_no_table_loses_its_right_side(row, methods):
    lines = shown(Table("Title", "", ("method", row), tuple(methods))).splitlines()
    ends = {"┏": "┓", "┃": "┃", "┡": "┩", "│": "│", "└": "┘"}
    assert all(line[-1] == ends[line[0]] for line in lines if line[0] in ends)
    assert max(map(len, lines)) <= WIDTH


def test_each_part_of_a_table_says_what_its_rows_are():
    rows = tuple((f"method-number-{k}", f"{k}.5 (10.0 to 20.0)") for k in range(7))
    text = shown(Table("Title", "", ("method", "accuracy"), rows))
    assert text.count("accuracy") == text.count("Title") > 1
    for k in range(7):
        assert f"method-number-{k}" in text
        assert f"{k}.5" in text


def test_a_table_that_fits_stays_whole_with_its_intervals_on_one_line():
    text = shown(Table("Title", "", ("method", "accuracy"), (("a", "1.5 (10.0 to 20.0)"), ("b", "2.5 (1.0 to 3.0)"))))
    assert text.count("Title") == 1
    assert "1.5 (10.0 to 20.0)" in text


def test_a_name_with_brackets_and_a_word_longer_than_the_terminal_are_shown():
    text = shown(Table("Title", "", ("method", "accuracy"), (("[bold]x[/bold] " + "z" * 100, "1.5"),)))
    assert "[bold]x[/bold]" in text
    assert text.count("z") == 100


@pytest.mark.parametrize("terminal", [True, False])
def test_sentences_are_wrapped_between_words_on_a_terminal_and_one_line_elsewhere(found, terminal, tmp_path):
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=terminal, color_system=None)
    show(console, found, tmp_path)
    lines = console.file.getvalue().splitlines()
    lines = lines[: next(place for place, line in enumerate(lines) if line.startswith("report: "))]
    together = " ".join(line.strip() for line in lines)
    for sentence in (*found.sentences, found.lead):
        assert sentence in together
        assert (sentence in lines) == (not terminal or len(sentence) <= WIDTH)
    assert not terminal or max(map(len, lines)) <= WIDTH
