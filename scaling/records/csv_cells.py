"""Keeps texts in CSV files from being run as formulas by spreadsheets. Standard library only."""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_QUOTE = "'"


def quoted(cell: Any) -> Any:
    """The cell as it is written: a text that looks like a formula gets a single quote before it, as OWASP advises."""
    return f"{_QUOTE}{cell}" if _is_formula(cell) else cell


def unquoted(cell: Any) -> Any:
    """The reverse of `quoted`: the cell as it was before."""
    return cell[len(_QUOTE) :] if _is_formula(cell) and cell.startswith(_QUOTE) else cell


def _is_formula(cell: Any) -> bool:
    """Whether a cell is a text that looks like a formula, with single quotes before it or without."""
    return isinstance(cell, str) and cell.lstrip(_QUOTE).startswith(_FORMULA)
