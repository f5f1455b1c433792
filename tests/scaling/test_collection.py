"""Garbage is not looked for while a command imports torch, and is again afterwards."""

from __future__ import annotations

import gc
import sys

import pytest

from scaling.collection import imports_without_collection


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether collection was off, at each freezing. Nothing is frozen, as that could not be taken back in this process."""
    calls: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append(not gc.isenabled()))
    return calls


@pytest.fixture
def before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.usefixtures("before_torch")
def test_it_is_off_during_the_imports_alone(frozen: list[bool]) -> None:
    with imports_without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert frozen == [True]


@pytest.mark.usefixtures("before_torch", "frozen")
def test_it_is_on_again_after_an_error() -> None:
    with pytest.raises(ImportError), imports_without_collection():
        raise ImportError
    assert gc.isenabled()


def test_where_torch_is_there_already_nothing_changes(frozen: list[bool]) -> None:
    with imports_without_collection():
        assert gc.isenabled()
    assert frozen == []


@pytest.mark.usefixtures("before_torch")
def test_a_user_who_has_it_off_keeps_it_off(frozen: list[bool]) -> None:
    gc.disable()
    try:
        with imports_without_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert frozen == []
