"""`sc.probe`: measures whether thoughts can help a backbone on a task, before anything is trained."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from scaling.probe.config import ProbeConfig
from scaling.probe.report import Report as ProbeReport
from softcotpp.options import interruptible, settings_from, with_options_of


@with_options_of(ProbeConfig)
def probe(*, quiet: bool = False, **options: Any) -> ProbeReport:
    """Measures room, what the assistant's states hold, the best constant prompt and the oracle, as `scale-probe` does.

    Args:
        quiet: whether to show no progress.
        options: options of `scale-probe`, with `_` for `-`. `config` is a YAML file with options.

    Raises:
        UsageError: where the command would print an error.
        KeyboardInterrupt: after Ctrl-C; nothing is kept.
    """
    settings = settings_from(options, ProbeConfig, call="sc.probe")
    from scaling.probe.cli import carry_out

    with interruptible():
        return carry_out(settings, Console(stderr=True, quiet=quiet))
