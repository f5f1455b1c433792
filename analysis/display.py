"""Prints a report in a terminal for `scale-report`: tables, notes and the verdict."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from analysis.results import Results
from analysis.tables import Table, headline, overview, special_tables, tables


def show(console: Console, results: Results, folder: Path) -> None:
    """Prints the report. The verdict comes last, because one looks for it at the end of the output.

    Args:
        console: where to print.
        results: all figures.
        folder: where the files of the report are.
    """
    console.print(headline(results), style="bold", highlight=False, markup=False)
    short = overview(results)
    if short:
        console.print(_lines(short), highlight=False)
        for special in special_tables(results):
            console.print(_lines(special), highlight=False)
    for table in [] if short else tables(results, every_axis=False):
        console.print(_rich(table), highlight=False)
    for note in results.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    for sentence in results.sentences:
        console.print(sentence, style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"report: {folder / 'report.html'}  (report.md, report.json, figures/)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _rich(table: Table) -> RichTable:
    """The table with a column for each method, so that it fits a terminal however many figures there are."""
    printed = RichTable(title=table.title, title_justify="left")
    printed.add_column(table.columns[0])
    for row in table.rows:
        printed.add_column(escape(row[0]), justify="right")  # rich would take brackets in a name for markup
    for place, column in enumerate(table.columns[1:], start=1):
        printed.add_row(column, *(escape(row[place]) for row in table.rows))
    return printed


def _lines(table: Table) -> RichTable:
    """The table with a row for each method."""
    printed = RichTable(title=table.title, title_justify="left")
    for place, column in enumerate(table.columns):
        printed.add_column(column, justify="right" if place else "left")
    for row in table.rows:
        printed.add_row(*map(escape, row))
    return printed
