"""Checks that Python finds the toolkit's own packages and not others with the same names.

The names of these packages are common words. A user's folder or file `analysis` may come before ours on Python's path, for
example beside a notebook.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

ROOMS = ("analysis", "contrastive", "scaling", "sweeps")
_HOME = Path(__file__).resolve().parents[1]


def refuse_foreign() -> None:
    """Raises UsageError where Python would import something else under the name of one of our packages.

    The message names the folder in the way.
    """
    for room in ROOMS:
        if (place := place_of(room)) != _own(room):
            where = "nothing" if place is None else str(place.parent if place.name == "__init__.py" else place)
            raise usage_error()(
                f"softcotpp needs its own package `{room}`, and Python finds {where} in its place: rename that, or start "
                f"Python in another folder."
            )


def place_of(room: str) -> Path | None:
    """The file that `import room` would load. A folder where it has no `__init__.py`, and None where there is neither."""
    loaded = sys.modules.get(room)
    spec = getattr(loaded, "__spec__", None) if loaded else importlib.util.find_spec(room)
    places = [getattr(spec, "origin", None), *(getattr(spec, "submodule_search_locations", None) or ())]
    return next((Path(place).resolve() for place in (*places, getattr(loaded, "__file__", None)) if place), None)


@cache
def usage_error() -> type[Exception]:
    """The class `scaling.records.errors.UsageError`. It is read from our own file where another `scaling` hides ours."""
    if place_of("scaling") == _own("scaling"):
        from scaling.records.errors import UsageError

        return UsageError
    file = _own("scaling").parent / "records" / "errors.py"
    spec = importlib.util.spec_from_file_location("softcotpp._errors", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is missing: install softcotpp anew")
    errors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(errors)
    error: type[Exception] = errors.UsageError
    return error


def _own(room: str) -> Path:
    """The file of our own package."""
    return _HOME / room / "__init__.py"
