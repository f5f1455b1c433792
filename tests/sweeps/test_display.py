"""What `scale-sweep` prints fits a terminal of 80 columns, and breaks no word."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from sweeps.cost_estimate import Expected, expected
from sweeps.display import SHOWN, progress_of, show_plan, show_points, state_of, what
from sweeps.grid import read_grid, recipes
from sweeps.labels import Words, axes_of
from sweeps.ledger import DONE, FAILED, RUNNING, Entry
from sweeps.plan import Plan, plan_of
from sweeps.points import points_of

WIDTH = 80


def planned(name: str) -> Plan:
    file = read_grid(name, scale="paper", changes=())
    return plan_of(file, points_of(file))


def cost(plan: Plan) -> Expected:
    return expected(plan, done=(), entries=(), rates={}, training={})


def printed(show: Any) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, markup=False, highlight=False)
    show(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "…" not in text
    return text


@pytest.mark.parametrize("name", recipes())
def test_plans_of_all_recipes_fit(name):
    plan = planned(name)
    words = set(printed(lambda console: show_plan(console, plan, cost(plan), 0)).split())
    for job in plan.jobs[:SHOWN]:
        assert {job.id, *what(job).split()} <= words
        assert {f"{one}," for one in job.needs[:1]} & words or {*job.needs[:1]} <= words
    assert ("--margin" in words) is (plan.file.margin is not None)
    assert "seed" in words, "what one training seed costs"


@pytest.mark.parametrize("name", recipes())
def test_points_of_all_recipes_fit(name):
    plan = planned(name)
    figures = {"accuracy": 1.0, "accuracy_low": 0.991, "accuracy_high": 1.0, "pass_at_1": 1.0}
    found = {point.id: figures for point in plan.points[::2]}
    words = set(printed(lambda console: show_points(console, plan, found)).replace(",", " ").split())
    assert {"100.0%", "99.1%", "accuracy", "result"} <= words
    texts = Words(plan.points)
    for point in plan.points[:SHOWN]:
        for key in axes_of(plan.file, plan.points)[:6]:
            assert set(texts.cell(point, key).replace(",", " ").split()) <= words


def test_running_jobs_fit_with_all_that_they_tell():
    jobs = sorted(planned("five-tasks").jobs, key=lambda job: -len(what(job)))[:6]
    progress = {"done": 123_456, "of": 1_234_567, "unit": "samples", "tokens": 10**7, "loss": 12.345}
    progress["since"] = time.time() - 100
    states = (RUNNING, RUNNING, RUNNING, DONE, FAILED, FAILED)
    entries = [
        Entry(job, state, 2, None, "its worker ran out of memory", progress, None, 1.0, {})
        for job, state in zip(jobs, states, strict=True)
    ]
    words = set(printed(lambda console: console.print(state_of(entries))).split())
    for entry in entries[:3]:
        assert set(what(entry.job).split()) <= words
        assert set(progress_of(entry).split()) - {progress_of(entry).split()[2]} <= words  # its rate changes meanwhile
