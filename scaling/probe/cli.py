"""The command `scale-probe`. It imports no heavy package such as torch before a probe begins."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Any

import typer

from scaling.cli import AsJson, ConfigFile, LocalFilesOnly, Revision, Version, examples, guarded, refuse_small_limit
from scaling.collection import imports_without_collection
from scaling.config import load_config
from scaling.options import takes
from scaling.probe.config import ProbeConfig
from scaling.records.errors import Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from scaling.probe.report import Report

EXAMPLES = (
    "scale-probe --difficulty 2",
    "scale-probe --task hidden-fact",
    "scale-probe --data questions --targets self --layers 8,16,24 --json",
)

app = typer.Typer(pretty_exceptions_enable=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=examples(EXAMPLES))
@takes(ProbeConfig)
def scale_probe(
    config: ConfigFile = None,
    json: AsJson = False,
    local_files_only: LocalFilesOnly = False,  # noqa: ARG001  (takes effect before the command begins)
    revision: Revision = None,  # noqa: ARG001  (is refused)
    version: Version = False,  # noqa: ARG001  (answers before the command begins)
    **given: Any,
) -> None:
    """Measure whether thoughts can help a backbone on a task, before anything is trained.

    How much of an answer's loss a rationale takes, what the assistant's states hold of what the answer needs, what the best
    constant prompt does, and whether any thoughts of a question's own help.
    """
    given = {key: value for key, value in given.items() if value is not None}
    raise typer.Exit(guarded("scale-probe", lambda: _probe(config, given, as_json=json)))


def _probe(file: str | None, given: dict[str, Any], *, as_json: bool) -> None:
    """Probes and prints the result. file: YAML file of options. given: options of the command line."""
    from rich.console import Console

    report = carry_out(load_config(file, given, ProbeConfig), Console(stderr=True))
    if as_json:
        print(jsonlib.dumps(report.to_dict(), indent=2))
    else:
        from scaling.probe.display import show_report

        show_report(Console(), report)


def carry_out(settings: ProbeConfig, console: Console) -> Report:
    """Probes as the settings say, and shows progress on the console.

    Args:
        settings: the settings, not yet resolved.
        console: where progress is shown.

    Raises:
        UsageError: where the settings, or what they name, cannot be used.
        Interrupted: on Ctrl-C.
    """
    settings.resolved()  # conflicts between options are reported before torch is imported
    refuse_small_limit()
    with imports_without_collection():
        from scaling.probe.display import ProbeProgress
        from scaling.probe.run import probe
    try:
        with ProbeProgress(console) as progress:
            return probe(settings, progress)
    except KeyboardInterrupt:
        raise Interrupted("stopped; a probe keeps nothing, so the same command begins again.") from None


def main() -> None:
    """Entry point of the `scale-probe` command."""
    app()
