"""Hooks of mkdocs: pages of files that lie outside docs/, and lists as GitHub reads them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
WHOLE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}  # pages made of files beside docs/
_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^ *(`{3,}|~{3,})")
_ITEM = re.compile(r"^( *)([-*]|\d+\.) ")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of `WHOLE`, and one for each file or folder outside docs/ that a page links to."""
    for page, name in WHOLE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    linked = set()
    for file in [file for file in files if file.src_uri.endswith(".md")]:
        linked |= {path for _, path in _outside(file.content_string, file.src_uri)}
    for path in sorted(linked):
        files.append(File.generated(config, _page_of(path), content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points links that leave docs/ to the pages that `on_files` has made, and sets lists apart from text above them."""
    here = page.file.src_uri
    targets = {
        link: posixpath.relpath(_page_of(path), posixpath.dirname(here)) for link, path in _outside(markdown, here)
    }
    targets |= {link: new for link in _links(markdown) if (new := _of_whole(link, here)) is not None}
    moved = _LINK.sub(lambda found: f"{found[1]}{targets.get(found[2], found[2])}{found[3] or ''}", markdown)
    return _lists_apart(moved)


def _links(markdown: str) -> list[str]:
    return [found[2] for found in _LINK.finditer(markdown)]


def _place(link: str, page: str) -> str:
    """Where a page's link points to, relative to the repository."""
    folder = posixpath.dirname(WHOLE[page]) if page in WHOLE else posixpath.join("docs", posixpath.dirname(page))
    return posixpath.normpath(posixpath.join(folder, link))


def _of_whole(link: str, page: str) -> str | None:
    """The new target of a link to a file in docs/ from outside, or to a file of `WHOLE`; None for all others."""
    path = _place(link, page)
    pages = {name: made for made, name in WHOLE.items()}
    target = pages.get(path, path.removeprefix("docs/") if page in WHOLE and path.startswith("docs/") else None)
    return None if target is None else posixpath.relpath(target, posixpath.dirname(page) or ".")


def _outside(markdown: str, page: str) -> list[tuple[str, str]]:
    """The links of a page to files outside docs/ that no page is made of, with their places in the repository."""
    found = []
    for link in _links(markdown):
        path = _place(link, page)
        if not path.startswith(("docs/", "..")) and path not in WHOLE.values() and (ROOT / path).exists():
            found.append((link, path))
    return found


def _page_of(path: str) -> str:
    return f"source/{path}.md"


def _shown(path: str) -> str:
    """A page that shows a file, or all text files of a folder."""
    place = ROOT / path
    inside = sorted(file for file in place.rglob("*") if file.suffix in (".py", ".md", ".toml", ".yaml", ".jinja"))
    parts = [f"# {path}\n"]
    for file in inside if place.is_dir() else [place]:
        name = file.relative_to(ROOT)
        heading = f"## {name}\n\n" if place.is_dir() else ""
        parts.append(f"{heading}````{file.suffix.removeprefix('.')}\n{file.read_text().rstrip()}\n````\n")
    return "\n".join(parts)


def _lists_apart(markdown: str) -> str:
    """Puts an empty line before a list that follows a line of text, without which Python-Markdown sees no list."""
    lines: list[str] = []
    fence, in_list = "", False
    for line in markdown.splitlines():
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and fence and mark[1].startswith(fence):
            fence = ""
        elif not fence:
            if _ITEM.match(line):
                if lines and lines[-1].strip() and not in_list:
                    lines.append("")
                in_list = True
            elif not line.strip() or not line.startswith(" "):
                in_list = False
        lines.append(line)
    return "\n".join(lines) + "\n"
