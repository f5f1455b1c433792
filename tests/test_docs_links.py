"""README and docs/: every link leads somewhere, every page is on the site, and pages that list what exists are complete."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import softcotpp as sc
from contrastive.health import Health
from scaling.records.records import Completion, PathCosines, PromptedQuestion
from sweeps.results import FIGURES

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    """The page without fenced blocks and code, in which there are no links and headings."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page):
    wrong = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", text_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_anchors_are_those_of_github():
    assert "the-same-tokens-in-every-batch---exact" in anchors(DOCS / "engines.md")
    assert "intervals-and-tests-statisticspy-differencespy" in anchors(DOCS / "analysis.md")


def test_every_page_is_in_the_sites_navigation():
    nav = (REPOSITORY / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"([\w/-]+\.md)$", nav, re.MULTILINE)
    made = {"changelog.md", "contributing.md"}  # of files beside docs/, by docs/site_hooks.py
    assert sorted(listed) == sorted({str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | made)


def test_the_site_asks_for_nothing_from_elsewhere():
    settings = (REPOSITORY / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert "- privacy" in settings
    assert not re.search(r"extra_(javascript|css)", settings)


def section(heading: str) -> str:
    """A part of docs/files.md, from its heading to the next one of the same level."""
    level = heading.split()[0]
    text = (DOCS / "files.md").read_text()
    return re.split(rf"^{level} ", text.partition(f"{heading}\n")[2], flags=re.MULTILINE)[0]


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("### `questions.jsonl`", PromptedQuestion),
        ("### `samples.jsonl`", Completion),
        ("### `thoughts.jsonl`", PathCosines),
        ("## A training", Health),
    ],
)
def test_every_field_of_a_record_is_described(heading, kind):
    told = section(heading)
    assert [field.name for field in fields(kind) if f"`{field.name}`" not in told] == []


def test_every_figure_of_points_csv_is_described():
    assert [name for name in FIGURES if f"`{name}`" not in section("## A sweep")] == []


def test_every_key_of_a_run_stands_in_files_md(tiny_model_folder, tmp_path):
    model = {"backbone": str(tiny_model_folder), "assistant": str(tiny_model_folder), "thinker": "untrained"}
    sizes = {"limit": 1, "latent_paths": 2, "samples": 1, "max_new_tokens": 2}
    sc.run(**model, **sizes, device="cpu", dtype="float32", adaptive=0.9, out=tmp_path / "run", quiet=True)
    written = {file.name for file in (tmp_path / "run").iterdir()}
    told = section("## A run")
    assert [name for name in written if f"`{name}`" not in told] == []
    for name in ("summary.json", "run.json"):
        keys = json.loads((tmp_path / "run" / name).read_text())
        part = section(f"### `{name}`")
        assert [key for key in keys if f"`{key}`" not in part] == []
    environment = json.loads((tmp_path / "run" / "run.json").read_text())["environment"]
    assert [key for key in environment if f"`{key}`" not in section("### `run.json`")] == []
