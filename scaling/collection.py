"""Puts the collection of cyclic garbage off while heavy libraries are imported. Standard library only."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_without_collection() -> Iterator[None]:
    """For a command's first import of torch and transformers: nothing is collected meanwhile, and what is there then stays.

    The million objects that these imports make are still there when the process ends. To look through them for garbage again
    and again takes a sixth of the imports' time. Does nothing where torch is there already, or collection is off.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # later collections pass over them, too
        gc.enable()
