"""Run directories as `scale-run` leaves them, made without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.records.costs import ModelCosts, RunCosts
from scaling.records.journal import Journal
from scaling.records.records import Completion, PathCosines, PromptedQuestion
from scaling.records.seeds import stream_seed

COSTS = RunCosts(
    ModelCosts(layers=1000, head=100, attention=10, windows=(0, 0), kv_bytes=64),
    ModelCosts(layers=300, head=30, attention=5, windows=(0,), kv_bytes=16),
    projection=20,
)
CONFIG: dict[str, Any] = {"method": "softcot++", "task": "arithmetic", "seed": 0, "temperature": 0.5, "adaptive": None}


def asked_of(number: int) -> list[PromptedQuestion]:
    return [
        PromptedQuestion(f"q{i}", f"What is {i} + 1?", str(i + 1), (), f"Say {i} + 1.", 20 + i % 3, 4, 6, 15)
        for i in range(number)
    ]


def completion(question: str, path: int, sample: int, answer: str | None, gold: str, text: str = "") -> Completion:
    right = answer == gold
    said = text or f"So it is {answer}."
    return Completion(question, path, sample, said, answer, right, answer, right, 5 + 3 * path + sample, "end", 7)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_run(answers, **config)`: answers[question][path][sample], a text or None; gold is question + 1.

    skip: keys that are missing. signals: for a key its log_prob and self_certainty. text: what each completion
    says. summary, costs, thoughts: as a run writes them.
    """

    def make(
        answers: Sequence[Sequence[Sequence[str | None]]],
        *,
        skip: Sequence[tuple[str, int, int]] = (),
        text: str = "",
        summary: dict[str, Any] | None = None,
        costs: RunCosts | None = COSTS,
        cosines: Sequence[Sequence[float]] | None = None,
        questions: list[PromptedQuestion] | None = None,
        signals: Callable[[str, int, int], tuple[float, float]] | None = None,
        **changes: Any,
    ) -> Path:
        shape = {"latent_paths": len(answers[0]), "samples": len(answers[0][0]), "limit": len(answers)}
        questions = questions or asked_of(len(answers))
        environment = {"device": "a laptop", "versions": {"torch": "2.13"}}
        if costs:
            environment["costs"] = asdict(costs)
        config = {**CONFIG, **shape, **changes}
        folder = tmp_path_factory.mktemp("run")
        with Journal.open(folder, config=config, environment=environment, questions=questions) as journal:
            for asked, paths in zip(questions, answers, strict=True):
                if cosines is not None:
                    journal.record_thoughts(PathCosines(asked.id, tuple(map(tuple, cosines))))
                for path, samples in enumerate(paths):
                    for sample, answer in enumerate(samples):
                        one = completion(asked.id, path, sample, answer, asked.answer, text)
                        one = replace(one, seed=stream_seed(config["seed"], *one.key))
                        if signals is not None:
                            log_prob, certainty = signals(*one.key)
                            one = replace(one, log_prob=log_prob, self_certainty=certainty)
                        if one.key not in skip:
                            journal.append(one)
            if summary is not None:
                journal.write_summary(summary)
        return folder

    return make


@pytest.fixture(scope="session")
def random_answers() -> Callable[..., list[list[list[str | None]]]]:
    """`random_answers(seed, questions, paths, samples, right=0.5)`: gold with this chance, else three others or none."""

    def draw(
        seed: int, questions: int, paths: int, samples: int, *, right: float | Sequence[float] = 0.5
    ) -> list[list[list[str | None]]]:
        rng = np.random.default_rng(seed)
        chances = np.broadcast_to(right, questions)

        def one(question: int) -> str | None:
            if rng.random() < chances[question]:
                return str(question + 1)
            wrong = int(rng.integers(4))
            return None if wrong == 3 else f"{900 + wrong}"

        return [[[one(q) for _ in range(samples)] for _ in range(paths)] for q in range(questions)]

    return draw
