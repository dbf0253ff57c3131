"""The pages: each in the navigation, links alive on the repository's page and on the site, nobody else asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LOADING = {"link": "href", "script": "src", "img": "src", "source": "src", "iframe": "src"}


def listed(entry: object) -> Iterator[str]:
    """The pages under an entry of mkdocs' `nav`."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, list | dict):
        for one in entry.values() if isinstance(entry, dict) else entry:
            yield from listed(one)


def test_every_page_is_in_the_navigation_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert Counter(listed(nav)) == Counter(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_pages_are_kept_apart_by_kind() -> None:
    kinds = {page.relative_to(DOCS).parts[0] for page in PAGES if page != DOCS / "index.md"}
    assert kinds == {"tutorials", "how-to", "reference", "explanation"}
    folders = {page.parent.relative_to(DOCS).as_posix() for page in PAGES if page != DOCS / "index.md"}
    assert folders == kinds | {"how-to/integrations"}


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings, none of which occurs twice."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere_on_the_repositorys_page(page: Path) -> None:
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", prose(page))):
        if "://" not in target:
            file = (page.parent / target).resolve() if target else page
            assert file.is_file(), f"{target} is not there"
            assert not anchor or anchor in anchors(file), f"{target} has no heading #{anchor}"


NAMED = re.compile(
    r"`((?:bench|cli|cloud|core|demo|deploy|devices|docs|edge|errors|models|partitioner|protos|scripts|tests)/[\w./-]*)"
)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    assert not [name for name in NAMED.findall(page.read_text()) if not (ROOT / name).exists()]


class Loads(HTMLParser):
    """What a page loads when it is opened, without being asked."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if LOADING.get(tag) == name]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` does it: strictly."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return out


def test_the_site_asks_nobody(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)  # and one for what is not there
    for page in pages:
        loads = Loads(page).found
        assert any(load.endswith(".js") for load in loads)
        assert not [load for load in loads if load.startswith(("http:", "https:", "//"))]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text())


def test_the_search_knows_every_page(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())["docs"]
    found = {entry["location"].partition("#")[0] for entry in index}
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() + "/" for page in PAGES}
    assert found == {page.removesuffix("index/") for page in pages}


def test_what_is_no_page_is_not_published(site: Path) -> None:
    assert not list(site.rglob("*.toml"))
