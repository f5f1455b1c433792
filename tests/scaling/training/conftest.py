"""What the tests of trainings share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scaling.training.config import TrainConfig


class Quiet:
    """Observes a training and remembers what it is told. stop_at: the number of the step, over all stages, that ends it."""

    def __init__(self, stop_at: int = 0):
        self.said: list[str] = []
        self._stop_at, self._steps = stop_at, 0

    def status(self, text):
        self.said.append(text)

    def started(self, progress, schedule):
        pass

    def stepped(self, progress, row):  # noqa: ARG002
        self._steps += 1
        if self._steps == self._stop_at:
            raise KeyboardInterrupt

    def answering(self, right, done, total):
        pass

    def examined(self, progress, health):
        pass


@pytest.fixture
def quiet() -> type[Quiet]:
    return Quiet


@pytest.fixture
def settings(tiny_model_folder, tmp_path) -> Callable[..., TrainConfig]:
    """`settings(**changes)`: 6 questions, 2 paths of 3 soft tokens, 4 steps."""
    model = str(tiny_model_folder)
    standard = {
        **{"backbone": model, "device": "cpu", "dtype": "float32", "limit": 6, "validation": 3},
        **{"latent_paths": 2, "soft_tokens": 3, "max_steps": 4, "batch_size": 3, "validate_every": 2},
        "out": tmp_path / "trained",
    }

    def make(**changes: Any) -> TrainConfig:
        assistant = {} if "method" in changes else {"assistant": model}
        return TrainConfig.model_validate({**standard, **assistant, **changes})

    return make
