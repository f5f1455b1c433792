"""What `scale-report` prints: the verdict, the notes and the tables of the report."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from analysis.results import Results
from analysis.tables import Table, headline, overview, tables


def show(console: Console, results: Results, folder: Path) -> None:
    """Verdict last, as it is what one looks for where the output ends."""
    console.print(headline(results), style="bold", highlight=False, markup=False)
    short = overview(results)
    if short:
        console.print(_lines(short), highlight=False)
    for table in [] if short else tables(results, every_axis=False):
        console.print(_rich(table), highlight=False)
    for note in results.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    for said in results.sentences:
        console.print(said, style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"report: {folder / 'report.html'}  (report.md, report.json, figures/)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _rich(table: Table) -> RichTable:
    """A method a column, so that it fits a terminal however many figures there are."""
    found = RichTable(title=table.title, title_justify="left")
    found.add_column(table.columns[0])
    for row in table.rows:
        found.add_column(escape(row[0]), justify="right")  # what stands in brackets is part of a name
    for place, column in enumerate(table.columns[1:], start=1):
        found.add_row(column, *(escape(row[place]) for row in table.rows))
    return found


def _lines(table: Table) -> RichTable:
    """A method a line."""
    found = RichTable(title=table.title, title_justify="left")
    for place, column in enumerate(table.columns):
        found.add_column(column, justify="right" if place else "left")
    for row in table.rows:
        found.add_row(*map(escape, row))
    return found
