"""Collects the data of the report's question browser: prompts, grids of answers, and the texts of completions.

All of it consists of JSON's types. The texts come from models and are not trusted, so nothing here turns them into HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.load import Run
from analysis.methods import Method
from scaling.records.records import Completion, PromptedQuestion
from scaling.records.summary import right_answers, right_completions
from scaling.records.votes import flat_vote, hierarchical_vote, path_votes


def browser(methods: Sequence[Method], *, limit: int) -> dict[str, Any]:
    """The first `limit` questions, each with the grid of answers of every method's first run that has texts."""
    shown = [method for method in methods if not method.runs[0].data.summarised]
    first = shown[0].runs[0].questions[:limit] if shown else ()
    return {
        "total": len(methods[0].runs[0].questions),
        "questions": [_question(asked) for asked in first],
        "methods": [_method(method, [asked.id for asked in first]) for method in shown],
    }


def _question(asked: PromptedQuestion) -> dict[str, Any]:
    return {"id": asked.id, "text": asked.text, "gold": asked.answer, "choices": list(asked.choices)}


def _method(method: Method, ids: list[str]) -> dict[str, Any]:
    run = method.runs[0]
    prompts = {asked.id: asked.prompt for asked in run.questions}
    of_question: dict[str, list[Completion]] = {one: [] for one in ids}
    for completion in run.completions(ids):
        of_question[completion.question_id].append(completion)
    grids = [_grid(completions, run, prompts[one]) for one, completions in of_question.items()]
    return {"name": method.name, "seed": run.config.get("seed"), "grids": grids}


def _grid(completions: list[Completion], run: Run, prompt: str) -> dict[str, Any]:
    """The answers to one question.

    Args:
        completions: all of the question.
        run: the run that they come from.
        prompt: the question's prompt.

    Returns:
        The prompt, both votes, and under "cells" the completions as [N][M]. An answer is None where there is none.
    """
    question_id = completions[0].question_id
    right = right_answers(completions)
    cells: list[list[Any]] = [[None] * run.num_samples for _ in range(run.num_paths)]
    for one, is_right in zip(completions, right_completions(completions), strict=True):
        cells[one.path][one.sample] = {
            **{"answer": one.answer, "right": is_right, "text": one.text, "tokens": one.num_tokens},
            "stop": one.stop_reason,
        }
    flat, paths = flat_vote(question_id, completions), hierarchical_vote(question_id, completions)
    answers = [answer for _, answer in sorted(path_votes(question_id, completions).items())]
    return {
        **{"prompt": prompt, "vote": flat.answer, "vote_right": flat.answer in right, "tied": flat.tied},
        **{"hierarchical": paths.answer, "path_votes": answers, "covered": bool(right), "cells": cells},
    }
