"""`--preview-data`: shows the first questions as a run would ask them, and how data were read. Loads no model."""

from __future__ import annotations

from typing import Any

from scaling.config import RunConfig
from scaling.records.errors import DATA, counted
from scaling.tasks.catalogue import task_of
from scaling.tasks.task import LoadedTask, ask

_SHOWN = 3


def preview_data(config: RunConfig) -> dict[str, Any]:
    """Reads the questions of resolved settings.

    Returns:
        Name of the task, kind of answers, number of questions, which columns were taken, and the first questions.

    Raises:
        UsageError: there is no such task, or its questions cannot be read.
    """
    task = task_of(config)
    return {
        **{"task": task.name, "kind": task.kind, "num_questions": len(task.questions), "taken": task.definition.taken},
        "questions": [_question(task, number) for number in range(min(_SHOWN, len(task.questions)))],
    }


def _question(task: LoadedTask, number: int) -> dict[str, Any]:
    """A question by field. number: of the question, from 0."""
    question, definition = task.questions[number], task.definition
    return {
        **{
            "id": question.id,
            "prompt": ask(definition, "text", question),
            "request": ask(definition, "asks", question),
        },
        **{"answer": question.answer, "rationale": list(question.rationale)},
    }


def as_text(preview: dict[str, Any]) -> str:
    """A preview as a person reads it."""
    asked = f"{counted(preview['num_questions'], 'question')} of {preview['task']}, answers of kind {preview['kind']}"
    taken = [f"{DATA}{preview['taken']}"] if preview["taken"] else []
    return "\n\n".join(["\n".join([*taken, asked]), *map(_as_text, preview["questions"])])


def _as_text(question: dict[str, Any]) -> str:
    steps = [f"  {step}" for step in question["rationale"]] or ["  none"]
    return "\n".join(
        [
            f"id: {question['id']}",
            *filter(None, (question["prompt"], question["request"])),
            *(f"answer: {question['answer']}", "rationale:", *steps),
        ]
    )
