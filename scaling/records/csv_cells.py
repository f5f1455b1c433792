"""Texts in the cells of CSV files, which spreadsheets open. Standard library only."""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_QUOTE = "'"


def quoted(cell: Any) -> Any:
    """A cell to write: a text that a spreadsheet would run as a formula begins with a single quote, as OWASP advises."""
    return f"{_QUOTE}{cell}" if _is_formula(cell) else cell


def unquoted(cell: Any) -> Any:
    """What `quoted` was given."""
    return cell[len(_QUOTE) :] if _is_formula(cell) and cell.startswith(_QUOTE) else cell


def _is_formula(cell: Any) -> bool:
    """Whether a text is a formula, or would be taken for a quoted one."""
    return isinstance(cell, str) and cell.lstrip(_QUOTE).startswith(_FORMULA)
