"""Prints a report in a terminal for `scale-report`: tables that fit its width, notes, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from analysis.results import Results
from analysis.tables import Table, headline, overview, special_tables, tables

_BORDER = 3  # columns of the terminal that a column of a table takes besides its cells
_BREAKS = (
    (" (", "\n("),
    (" - ", "\n- "),
)  # where a cell may become two lines: before an interval, and in a pair's name


def show(console: Console, results: Results, folder: Path) -> None:
    """Prints the report. The verdict comes last, because one looks for it at the end of the output.

    Args:
        console: where to print.
        results: all figures.
        folder: where the files of the report are.
    """
    prose(console, headline(results), style="bold")
    short = overview(results)
    if short:
        console.print(_lines(short), highlight=False)
    for table in special_tables(results) if short else tables(results, every_axis=False):
        for part in fitted(table, console.width):
            console.print(part, highlight=False)
    for note in results.notes:
        prose(console, f"note: {note}")
    for sentence in results.sentences:
        prose(console, sentence)
    prose(console, results.lead, style="bold")
    where = f"report: {folder / 'report.html'}  (report.md, report.json, figures/)"
    console.print(where, highlight=False, markup=False, soft_wrap=True)


def prose(console: Console, text: str, *, style: str | None = None) -> None:
    """Prints a text of words: wrapped between words on a terminal, on one line elsewhere, where it may be searched."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def fitted(table: Table, width: int) -> Iterator[RichTable]:
    """The table with a column for each of its rows, in as many parts as it takes to fit a terminal.

    Where it is too wide for one part, intervals move to a line of their own; what is still too wide goes on below. No word
    is broken, except one that is longer than the terminal is wide.

    Args:
        table: usually with a row for each method.
        width: of the terminal, in columns.
    """
    heads, columns = list(table.columns), [list(row) for row in table.rows]
    if _width([heads, *columns]) > width:
        columns = [[_broken(cell) for cell in column] for column in columns]
    part: list[list[str]] = []
    for column in columns:
        if part and _width([heads, *part, column]) > width:
            yield _rich(table.title, [heads, *part], width)
            part = []
        part.append(column)
    yield _rich(table.title, [heads, *part], width)


def _width(columns: Sequence[Sequence[str]]) -> int:
    """How wide a table of these columns is at least."""
    return 1 + sum(_BORDER + _least(column) for column in columns)


def _least(column: Sequence[str]) -> int:
    """How wide a column is at least. Its first cell is its head, which alone may wrap between words."""
    head, *cells = column
    return max(map(len, [*head.split(), *"\n".join(cells).split("\n")]))


def _widths(columns: Sequence[Sequence[str]], width: int) -> list[int]:
    """How wide each column of a table that fits is: what heads lack is shared, the shortest first.

    What Rich gives them may be more than the terminal's width, whose right side is then missing.
    """
    widths = [_least(column) for column in columns]
    left, lacking = width - _width(columns), [max(0, len(column[0]) - _least(column)) for column in columns]
    for done, place in enumerate(sorted(range(len(columns)), key=lacking.__getitem__)):
        more = min(lacking[place], left // (len(columns) - done))
        widths[place] += more
        left -= more
    return widths


def _broken(cell: str) -> str:
    for before, after in _BREAKS:
        cell = cell.replace(before, after)
    return cell


def _rich(title: str, columns: Sequence[Sequence[str]], width: int) -> RichTable:
    """A table with these columns, the first cell of each being its head. Rich wraps nothing else, where that is possible."""
    printed = RichTable(title=title, title_justify="left")
    widths = _widths(columns, width) if _width(columns) <= width else [None] * len(columns)
    for place, (column, wide) in enumerate(zip(columns, widths, strict=True)):
        # escaped, as rich would take brackets in a name for markup
        printed.add_column(escape(column[0]), justify="right" if place else "left", width=wide, overflow="fold")
    for cells in zip(*(column[1:] for column in columns), strict=True):
        printed.add_row(*map(escape, cells))
    return printed


def _lines(table: Table) -> RichTable:
    """The table with a row for each method, whose name alone may wrap."""
    printed = RichTable(title=table.title, title_justify="left")
    for place, column in enumerate(table.columns):
        printed.add_column(column, justify="right" if place else "left", no_wrap=place > 0)
    for row in table.rows:
        printed.add_row(*map(escape, row))
    return printed
