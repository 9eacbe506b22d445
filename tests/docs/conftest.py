"""The documentation, built once: the pages as a reader gets them."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from support.compose import ROOT

BUILD_SECONDS = 110


@dataclass
class Page:
    """What a built page says, and what can be linked to in it."""

    text: str
    anchors: set[str]
    rows: list[list[str]] = field(default_factory=list)
    """The cells of every row of every table."""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.anchors: set[str] = set()
        self.rows: list[list[str]] = []
        self._skipped = 0
        self._in_cell = False

    def handle_starttag(self, tag, attrs):
        self.anchors |= {value for name, value in attrs if name == "id" and value}
        self._skipped += tag in ("script", "style", "nav")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._skipped -= tag in ("script", "style", "nav")
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self._skipped:
            return
        self.parts.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        check=False,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="session")
def page(site) -> Callable[[str], Page]:
    """Read a page by its name, such as reference/settings."""

    @cache
    def read(name: str) -> Page:
        reader = _Reader()
        reader.feed((site / f"{name}.html").read_text(encoding="utf-8"))
        rows = [[" ".join(cell.split()) for cell in row] for row in reader.rows]
        return Page(re.sub(r"\s+", " ", "".join(reader.parts)), reader.anchors, rows)

    return read
