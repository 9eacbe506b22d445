"""The site is whole: it builds strictly, loads nothing from elsewhere, and its pictures are up to date."""

import hashlib
import re

import pytest

from support.documents import DOCUMENTS, ROOT, name_of, text_of

DIAGRAMS = sorted((ROOT / "docs" / "diagrams").glob("*.mmd"))
PICTURES = sorted(picture for kind in ("svg", "png") for picture in (ROOT / "docs").rglob(f"*.{kind}"))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    import offline

    return offline


def test_no_page_loads_anything_from_elsewhere(site, offline):
    files = [file for file in site.rglob("*") if file.suffix in (".html", ".css", ".svg")]

    assert len(files) > 20
    assert {file.name: found for file in files if (found := offline.elsewhere(file))} == {}


@pytest.mark.parametrize(
    "resource",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/x.css">',
        '<img src="http://cdn.example/x.png">',
        '<img src="x.png" srcset="https://cdn.example/x2.png 2x">',
        "<style>@import 'https://cdn.example/x.css'</style>",
        '<p style="background: url(https://cdn.example/x.png)"></p>',
        '<iframe src="https://cdn.example/"></iframe>',
        '<svg><image xlink:href="https://cdn.example/x.png"/></svg>',
    ],
)
def test_what_would_be_loaded_from_elsewhere_is_found(offline, tmp_path, resource):
    (tmp_path / "page.html").write_text(f"<html><body>{resource}</body></html>", encoding="utf-8")

    assert len(offline.elsewhere(tmp_path / "page.html")) == 1


@pytest.mark.parametrize(
    "link",
    [
        '<a href="https://example.org/">elsewhere</a>',
        '<link rel="canonical" href="https://example.org/">',
        '<img src="pictures/x.png">',
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    ],
)
def test_a_link_that_a_reader_follows_is_none_of_it(offline, tmp_path, link):
    (tmp_path / "page.html").write_text(f"<html><body>{link}</body></html>", encoding="utf-8")

    assert offline.elsewhere(tmp_path / "page.html") == []


def test_no_marker_was_left_where_something_is_generated(site):
    for file in site.rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert "<!-- generated:" not in text, file.name
        assert "::: " not in re.sub(r"<code>.*?</code>", "", text, flags=re.DOTALL), file.name
        assert "Sentinel" not in text, file.name


@pytest.mark.parametrize("diagram", DIAGRAMS, ids=name_of)
def test_every_diagram_is_drawn_from_its_text(diagram):
    drawn = diagram.with_suffix(".svg").read_text(encoding="utf-8")

    assert f"sha256 of {diagram.name}: {hashlib.sha256(diagram.read_bytes()).hexdigest()}" in drawn, (
        "drawn from another text: make diagrams"
    )


def test_every_picture_is_shown():
    pages = "".join(map(text_of, DOCUMENTS))

    assert [picture.name for picture in PICTURES if picture.name not in pages] == []


def test_nothing_of_the_generator_is_in_the_site(site):
    assert [file.name for file in site.rglob("*") if file.suffix in (".py", ".mmd", ".sh")] == []
