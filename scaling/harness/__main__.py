"""`python -m scaling.harness`: the lm-evaluation-harness's own command. Its default model is that of this toolkit."""

from __future__ import annotations

import sys

from scaling.records.errors import UsageError, install

_OTHER = ("ls", "validate")  # the harness's commands that take no model


def main() -> None:
    """Runs the harness's command. Exit code 2 for an error of usage, 130 after Ctrl-C."""
    try:
        from lm_eval.__main__ import cli_evaluate

        from scaling.harness.model import NAME
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("lm_eval"):
            raise
        print(f"the harness is an optional package: {install('lm-eval')}", file=sys.stderr)
        raise SystemExit(2) from None
    named = any(argument.split("=")[0] in ("--model", "-M") for argument in sys.argv)
    if len(sys.argv) > 1 and not named and sys.argv[1] not in _OTHER:
        sys.argv += ["--model", NAME]
    try:
        cli_evaluate()
    except UsageError as error:
        print(f"scaling.harness: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("scaling.harness: stopped.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
