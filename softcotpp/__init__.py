"""The toolkit from Python: runs, trainings and reports, with the options of the commands as keywords.

    import softcotpp as sc
    run = sc.run(task="arithmetic", limit=20, latent_paths=8, samples=4)
    run.summary; run.completions; run.thoughts("test-0"); run.vote("flat")
    sc.report(run, out="report")

Importing `softcotpp` is quick: each name is imported when it is first used. Mistakes that a user can correct raise
`UsageError`, with the message that the commands print.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from softcotpp import rooms

if TYPE_CHECKING:
    from scaling.methods.kinds import Trait
    from scaling.records.errors import UsageError
    from scaling.records.records import Question
    from scaling.tasks.task import Task
    from softcotpp.own_method import Method
    from softcotpp.pages import Report, report
    from softcotpp.probes import probe
    from softcotpp.runs import Run, load, run
    from softcotpp.trainings import Trained, train

    __version__: str

_FROM = {
    **dict.fromkeys(("Run", "load", "run"), "softcotpp.runs"),
    **dict.fromkeys(("Trained", "train"), "softcotpp.trainings"),
    **dict.fromkeys(("Report", "report"), "softcotpp.pages"),
    "probe": "softcotpp.probes",
    "Method": "softcotpp.own_method",
    "Trait": "scaling.methods.kinds",
    "Question": "scaling.records.records",
    "Task": "scaling.tasks.task",
}

__all__ = [
    "Method",
    "Question",
    "Report",
    "Run",
    "Task",
    "Trained",
    "Trait",
    "UsageError",
    "__version__",
    "load",
    "probe",
    "report",
    "run",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__` when it is first used.

    Raises:
        UsageError: another package hides one of the toolkit's, because it has the same name and comes first on the path.
    """
    if name == "__version__":
        from importlib.metadata import version

        return version("softcotpp")
    if name == "UsageError":
        return rooms.usage_error()
    if name not in _FROM:
        raise AttributeError(f"module 'softcotpp' has no attribute {name!r}")
    rooms.refuse_foreign()
    value = globals()[name] = getattr(importlib.import_module(_FROM[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
