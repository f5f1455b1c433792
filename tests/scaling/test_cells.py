"""Cells of CSV files: none is a formula, and each can be read back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaling.records.csv_cells import quoted, unquoted


@given(st.one_of(st.text(alphabet="'=+-@\tab1", max_size=5), st.integers(), st.floats(allow_nan=False), st.none()))
def test_a_cell_is_no_formula_and_comes_back_as_it_was(cell):
    written = quoted(cell)
    assert unquoted(written) == cell
    if isinstance(cell, str):
        assert not written.startswith(("=", "+", "-", "@", "\t", "\r"))
    else:
        assert written is cell
