"""Draws a progress bar in a notebook as plain HTML. The bar of rich would need widgets there, which may not be installed."""

from __future__ import annotations

import importlib
import time
from html import escape
from typing import Any

from rich.progress import TaskID

_EVERY = 0.5  # seconds between updates: each one is sent to the browser


class NotebookBar:
    """A bar with a text beside it. It has those methods of `rich.progress.Progress` that a single task needs."""

    def __init__(self, unit: str, *, transient: bool = False) -> None:
        """unit: what is counted, in the plural. transient: whether the bar disappears at the end."""
        self._unit = unit
        self._transient = transient
        self._shown = 0.0
        self._values: dict[str, Any] = {}
        self._handle: Any = None

    def add_task(self, _description: str, *, total: int, completed: int, said: str) -> TaskID:
        """Sets what the bar shows: `completed` of `total`, and the text `said` beside it."""
        self._values = {"total": total, "completed": completed, "said": said}
        return TaskID(0)

    def start(self) -> None:
        display = importlib.import_module("IPython.display")  # there wherever there is a notebook
        self._html = display.HTML
        self._handle = display.display(self._bar(), display_id=True)
        self._shown = time.monotonic()

    def update(self, _task: TaskID, **values: Any) -> None:
        """Shows new values, at most twice a second. values: those arguments of `add_task` that have changed."""
        self._values |= values
        if self._handle and time.monotonic() - self._shown > _EVERY:
            self._shown = time.monotonic()
            self._handle.update(self._bar())

    def stop(self) -> None:
        if self._handle:
            self._handle.update(self._html("") if self._transient else self._bar())
            self._handle = None

    def _bar(self) -> Any:
        total, completed = self._values["total"], self._values["completed"]
        text = escape(f"{completed}/{total} {self._unit}, {self._values['said']}")
        return self._html(f'<progress value="{completed}" max="{total}"></progress> <code>{text}</code>')
