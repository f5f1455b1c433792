"""Files that several processes may write at once: each is there as a whole, the last one stays. And how our own files are
run, whatever else the user's folder holds."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

MODULE = (sys.executable, "-P", "-m")  # -P: a file of the user that has a module's name is not run in its place


def write_whole(path: Path, text: str) -> None:
    """Replaces the file in one step."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
