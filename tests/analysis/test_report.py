"""The page: safe whatever a model wrote, whole without a network, and clicked through in a browser where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.browser import browser
from analysis.load import load
from analysis.methods import group
from analysis.results import Settings, results
from analysis.write import write

HOSTILE = (
    "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!-- <a href='javascript:document.title=1'>{{ 7 * 7 }}</a> \u2028 \u202e ]]> &lt; \ud83d"
)


class Reader(HTMLParser):
    """Collects what a browser would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        if tag == "script":
            self.scripts.append(fields)
        self.handlers += [name for name in fields if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            value = fields.get(name)
            if value and not value.startswith(("#", "data:image/png;base64,")):
                self.fetched.append(value)


@pytest.fixture(scope="session")
def pages(make_run, random_answers, tmp_path_factory):
    """`pages(**settings)`: a report of two runs full of hostile texts, its folder."""

    def make(browse: int = 200) -> Path:
        answers = random_answers(1, 9, 3, 2)
        answers[0] = [["1", "1"], ["1", HOSTILE], [HOSTILE, HOSTILE]]  # paths disagree, tied at 3 to 3
        answers[1] = [["7", "7"], ["7", "7"], ["2", "7"]]  # vote wrong but covered
        answers[2] = [["3", "3"]] * 3  # nothing to see
        plain = [[[answer for path in paths for answer in path]] for paths in answers]
        folders = [make_run(answers, text=HOSTILE), make_run(plain, text=HOSTILE, method="cot", thinker=HOSTILE[:40])]
        methods = group([("<i>x", load(folders[0])), (None, load(folders[1]))], common=False)
        found = results(methods, Settings(), lambda _: None)
        out = tmp_path_factory.mktemp("report")
        write(found, methods, out, browse=browse, tell=lambda _: None)
        return out

    return make


@pytest.fixture(scope="session")
def page(pages):
    return (pages() / "report.html").read_text(encoding="utf-8")


def test_nothing_that_a_model_wrote_is_markup(page):
    reader = Reader()
    reader.feed(page)
    assert reader.scripts == [{"type": "application/json", "id": "data"}, {}]
    assert reader.handlers == []
    assert reader.fetched == []
    assert "<script>document.title" not in page
    assert "<i>x" not in page
    assert "{{ 7 * 7 }}" in page  # a model's braces are no template


def test_the_data_come_back_as_they_were(page):
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["methods"][0]["name"] == "<i>x"
    cells = data["methods"][0]["grids"][0]["cells"]
    assert cells[1][1]["answer"] == HOSTILE
    assert cells[1][1]["text"] == HOSTILE
    assert [[cell["right"] for cell in row] for row in cells] == [[True, True], [True, False], [False, False]]


def test_the_page_lets_only_its_own_script_run(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe-eval" not in policy


def test_the_verdict_stands_before_everything_else(page):
    order = [page.index(f'id="{part}"') for part in ("verdict", "figures", "questions")]
    assert order == sorted(order)


def test_the_browser_shows_no_more_questions_than_asked_for(pages):
    data = json.loads(
        re.search(r'id="data">(.*?)</script>', (pages(browse=2) / "report.html").read_text(), re.DOTALL)[1]
    )
    assert [question["id"] for question in data["questions"]] == ["q0", "q1"]
    assert data["total"] == 9
    assert [len(method["grids"]) for method in data["methods"]] == [2, 2]
    none = json.loads(
        re.search(r'id="data">(.*?)</script>', (pages(browse=0) / "report.html").read_text(), re.DOTALL)[1]
    )
    assert none["questions"] == []


def test_grids_hold_votes_of_the_voter(make_run):
    methods = group([(None, load(make_run([[["1", "1"], ["9", None]], [[None, None], [None, None]]])))], common=False)
    first, second = browser(methods, limit=5)["methods"][0]["grids"]
    assert (first["vote"], first["vote_right"], first["covered"], first["tied"]) == ("1", True, True, False)
    assert first["path_votes"] == ["1", "9"]
    assert (second["vote"], second["vote_right"], second["covered"]) == (None, False, False)


def _chromium() -> str | None:
    named = os.environ.get("CHROMIUM")
    found = [named, *map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))]
    return next((path for path in found if path), None)


@pytest.mark.skipif(_chromium() is None, reason="no Chromium on this machine; install one, or name it in CHROMIUM")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_clicked_through(pages, scheme):
    from playwright.sync_api import sync_playwright

    out = pages()
    with sync_playwright() as driver:
        # the sandbox of the browser needs rights that containers seldom give; the page is our own
        chromium = driver.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        try:
            page = chromium.new_page(color_scheme=scheme)
            said: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto((out / "report.html").as_uri())
            _click_through(page)
            assert page.title().startswith("<i>x, CoT-SC on arithmetic, 9 questions")
            assert said == []
            assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        finally:
            chromium.close()


def _click_through(page) -> None:
    items = page.locator("#list button")
    assert items.count() == 9
    items.nth(0).click()
    cells = page.locator("#detail section >> nth=0").locator(".cell")
    assert cells.count() == 6
    assert page.locator("#detail .cell").count() == 12
    assert [cells.nth(place).get_attribute("class") for place in (0, 3)] == ["cell right", "cell wrong"]
    cells.nth(3).click()
    shown = page.locator("#detail section >> nth=0").locator("pre").first.text_content()
    assert "<script>document.title = 'owned'</script>" in shown
    assert "[path 2, sample 2, 9 tokens, ended]" in shown
    assert page.locator("img").count() == page.locator("#detail a").count() == 0
    page.locator("#detail summary").first.click()
    assert page.locator("#detail details pre").first.is_visible()

    for name, wanted in (("covered", "q1"), ("disagree", "q0")):
        page.select_option("#filter", name)
        ids = [text.split("  ")[1].split(":")[0] for text in items.all_text_contents()]
        assert wanted in ids
        assert "q2" not in ids
        assert page.locator("#count").text_content() == f"{len(ids)} of 9"
    page.select_option("#filter", "all")
    page.fill("#search", "is 4 + 1")
    assert items.count() == 1
    page.fill("#search", "")
    page.select_option("#of", "1")
    page.select_option("#filter", "disagree")
    assert items.count() == 0  # one path cannot disagree
    page.select_option("#of", "any")
    page.select_option("#filter", "methods")
    assert items.count() == 0  # the same answers in another shape; ties may differ, and q0 is tied
