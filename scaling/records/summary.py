"""Computes the figures of summary.json from the completions of a run.

What counts: the given questions, paths below N and samples below M. Of these, only complete questions count, whose whole
N x M grid is there: a missing completion is neither wrong nor without an answer. In an adaptive run a question is also
complete once its vote is decided; then only the completions that decided it count. Nothing is rounded. A rate over nothing
is None, never 0.0.

This module knows nothing of files and tasks, and does not read or judge answers itself. An answer is right if any completion
with an equal answer was judged right. One judgement is not enough: a comparison with the gold answer that runs out of time
counts as wrong, which may happen in one session and not in the next.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from scaling.records.adaptive import leading
from scaling.records.answer_classes import classes_of
from scaling.records.intervals import wilson_of_clusters
from scaling.records.records import LATENT_STEPS, TIMEOUTS, Completion, Key, PromptedQuestion, Question
from scaling.records.voters import OF_RUNS, Voter, voter_of
from scaling.records.votes import flat_vote, hierarchical_vote, majority

Grid = list[Completion]  # the completions of one complete question that count


def run_summary(
    questions: Sequence[Question] | Sequence[PromptedQuestion],
    completions: Mapping[Key, Completion],
    costs: Mapping[str, float],
    *,
    counters: Iterable[str],
    task: str,
    method: str,
    folder: Path,
    **options: Any,
) -> dict[str, Any]:
    """Makes the content of summary.json: the figures of a run's completions, and what they cost.

    Args:
        questions: the run's questions.
        completions: its completions by key.
        costs: of all sessions, or all parts, of the run together, as `scaling.records.records.added` adds them.
        counters: names of the engine's counters among the costs.
        task: name of the task.
        method: name of the method.
        folder: the run's directory.
        options: the other arguments of `summarise`.
    """
    engine = {key: costs.get(key, 0) for key in counters if not key.startswith("prefill")}
    capacity = engine.get("row_capacity")
    return {
        **summarise(questions, completions, **options),
        "timeouts": costs.get(TIMEOUTS, 0),
        "tokens": {
            "prefill_computed": costs.get("prefill_computed", 0),
            "prefill_avoided": costs.get("prefill_avoided", 0),
            "generated": sum(completion.num_tokens for completion in completions.values()),
            **({LATENT_STEPS: costs[LATENT_STEPS]} if costs.get(LATENT_STEPS) else {}),
        },
        "engine": {**engine, "slot_occupancy": engine["decoded_rows"] / capacity if capacity else None},
        "peak_memory_bytes": costs.get("peak_memory_bytes") or None,
        "seconds": costs.get("seconds", 0.0),
        "task": task,
        "method": method,
        "run": str(folder),
    }


def summarise(
    questions: Sequence[Question] | Sequence[PromptedQuestion],
    completions: Mapping[Key, Completion],
    *,
    num_paths: int,
    num_samples: int,
    voter: str | Voter,
    adaptive: float | None = None,
) -> dict[str, Any]:
    """Computes the accuracy of votes, with a 95 % interval for the flat vote, and the rates behind it.

    Args:
        questions: the questions that count.
        completions: completions by key; those of other questions, paths or samples are ignored.
        num_paths: N.
        num_samples: M.
        voter: the vote of `accuracy_voted`: a built-in voter's name, or a voter.
        adaptive: the confidence at which a vote is decided early, None for never.

    Returns:
        The figures by name. accuracy, accuracy_low, accuracy_high, accuracy_strict and ties are those of the flat vote,
        whatever `voter` says; the interval takes clusters of questions as units, of which there are num_clusters.
        num_completions is the number of completions that count, and all rates of completions are shares of it; unread is the
        number of those that the answer reader failed on.

    Raises:
        ValueError: for an empty grid, or a name that is not a built-in voter's.
        UsageError: where a voter cannot weigh a chain.
    """
    if (isinstance(voter, str) and voter not in OF_RUNS) or num_paths < 1 or num_samples < 1:
        raise ValueError(f"cannot summarise {num_paths} paths x {num_samples} samples with voter {voter!r}")
    voter, size = voter_of(voter), {"num_paths": num_paths, "num_samples": num_samples}
    grids = ((q, leading(q.id, completions, **size, confidence=adaptive)) for q in questions)
    of_questions = [(question, grid) for question, grid in grids if grid is not None]
    whole = [(question.id, grid) for question, grid in of_questions]
    clusters = [question.cluster or (question.id,) for question, _ in of_questions]
    figures = {**_vote_figures(whole, clusters), **_completion_figures([grid for _, grid in whole])}
    right = sum(voter.vote(question, grid).answer in right_answers(grid) for question, grid in of_questions)
    return {
        **figures,
        "voter": voter.name,
        **({"voter_sha256": voter.sha256} if voter.sha256 else {}),
        "accuracy_voted": _share(right, len(whole)),
        "num_questions": len(whole),
        "num_questions_expected": len(questions),
        "num_clusters": len(set(clusters)) if len(set(clusters)) < len(whole) else None,
        "complete": len(whole) == len(questions),
        **({"adaptive": _savings(whole, completions, **size, confidence=adaptive)} if adaptive is not None else {}),
    }


def _savings(
    whole: Sequence[tuple[str, Grid]],
    completions: Mapping[Key, Completion],
    *,
    num_paths: int,
    num_samples: int,
    confidence: float,
) -> dict[str, Any]:
    """How many questions were decided early, and how many samples of complete questions were therefore not drawn.

    A sample that was drawn is not saved, even if it came too late to count.
    """
    cells = list(product((question_id for question_id, _ in whole), range(num_paths), range(num_samples)))
    saved = sum(cell not in completions for cell in cells)
    return {
        "confidence": confidence,
        "questions_stopped": sum(len(grid) < num_paths * num_samples for _, grid in whole),
        "samples_saved": saved,
        "samples_saved_share": _share(saved, len(cells)),
    }


def right_answers(completions: Iterable[Completion], *, strict: bool = False) -> set[str | None]:
    """The right answers to one question, written as in `Vote.answer`.

    Of several equal answers, it is enough that one was judged right.

    Args:
        completions: of the question.
        strict: take the strict reading of each completion instead of the lenient one.

    Returns:
        A set that never contains None.
    """
    read = [(c.answer_strict, c.correct_strict) if strict else (c.answer, c.correct) for c in completions]
    classes = classes_of(answer for answer, _ in read)
    return {classes[answer].shown for answer, right in read if right and answer is not None}


def right_completions(grid: Grid) -> list[bool]:
    """For each completion of one question, whether its answer is right."""
    right, classes = right_answers(grid), classes_of(completion.answer for completion in grid)
    return [completion.answer is not None and classes[completion.answer].shown in right for completion in grid]


def _vote_figures(whole: Sequence[tuple[str, Grid]], clusters: Sequence[Hashable]) -> dict[str, Any]:
    """Figures of votes. whole: id and completions of each complete question; clusters: the name of each one's cluster."""
    right: list[bool] = []
    hierarchical_right = strict_right = ties = 0
    for question_id, grid in whole:
        lenient, strict = right_answers(grid), right_answers(grid, strict=True)
        flat = flat_vote(question_id, grid)
        right.append(flat.answer in lenient)
        hierarchical_right += hierarchical_vote(question_id, grid).answer in lenient
        strict_right += majority(question_id, [(c.path, c.answer_strict) for c in grid]).answer in strict
        ties += flat.tied
    low, high = wilson_of_clusters(right, clusters)
    return {
        "accuracy": _share(sum(right), len(whole)),
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_hierarchical": _share(hierarchical_right, len(whole)),
        "accuracy_strict": _share(strict_right, len(whole)),
        "ties": ties,
    }


def _completion_figures(grids: Sequence[Grid]) -> dict[str, Any]:
    """Figures of single completions. grids: the completions of each complete question."""
    drawn = [completion for grid in grids for completion in grid]
    return {
        "pass_at_1": _share(sum(sum(right_completions(grid)) for grid in grids), len(drawn)),
        "coverage": _share(sum(any(c.correct for c in grid) for grid in grids), len(grids)),
        "no_answer": _share(sum(c.answer is None for c in drawn), len(drawn)),
        "unread": sum(c.unread is not None for c in drawn),
        "truncated": _share(sum(c.stop_reason == "length" for c in drawn), len(drawn)),
        "mean_tokens": _share(sum(c.num_tokens for c in drawn), len(drawn)),
        "num_completions": len(drawn),
    }


def _share(count: int, total: int) -> float | None:
    """A rate; None over nothing."""
    return count / total if total else None
