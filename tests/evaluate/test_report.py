"""The page: one file that loads nothing, runs nothing, and shows what it was given as it is."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from support.colours import paint
from support.threaded import served
from support.tiny import tiny_manifest, tiny_model, write_model
from vistazo_client.cli import main
from vistazo_evaluate.report.thumbnails import thumbnail

STRANGE = "</style><script>alert(1)</script> & \"q\" 'a' $x^2$ 猫"


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.text = ""
        self.open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += f" {data}"

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


def words(page):
    return " ".join(page.text.split())


def wrong_ones(colours, count):
    for number in range(count):
        Image.new("RGB", (40, 30), (200, number, 10)).save(colours / "blue" / f"wrong{number}.png")


@pytest.fixture
def report(evaluate, tiny_server, colours, tmp_path):
    """Write a report; return its path."""

    def write(*arguments):
        path = tmp_path / "out" / "report.html"
        ran = evaluate(colours, "--server", tiny_server, "--report", path, *arguments)
        assert ran.status in (0, 1), ran.output
        assert list(path.parent.iterdir()) == [path]
        return path

    return write


@pytest.fixture(scope="module")
def written(tiny_server, tmp_path_factory):
    """A report with everything: mistakes, a failure, a bound that is not kept, and a baseline."""
    folder = tmp_path_factory.mktemp("report")
    paint(folder / "colours")
    wrong_ones(folder / "colours", 30)
    (folder / "colours" / "green" / "broken.png").write_bytes(b"no image")
    arguments = ["evaluate", folder / "colours", "--server", tiny_server, "--report", folder / "r.html"]
    arguments += ["--model", "wrong", "--version", "1", "--baseline", "wrong:2", "--min-top1", "0.99"]
    assert CliRunner().invoke(main, [str(each) for each in arguments]).exit_code == 1
    return folder / "r.html"


@pytest.fixture(scope="module")
def page(written):
    return page_of(written)


def test_nothing_is_loaded_and_nothing_runs(page):
    assert page.open == []
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    loaded = [attrs.get("src") or attrs.get("srcset") for attrs in page.all("img") + page.all("source")]
    assert len(loaded) > 8
    assert all(re.match(r"data:image/(jpeg|svg\+xml);base64,", each) for each in loaded)
    (policy,) = [attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs]
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in policy
    # No style and no handler stands in an attribute: the policy would stop it.
    names = {name for _, attrs in page.elements for name in attrs}
    assert not [name for name in names if name == "style" or name.startswith("on")]


def test_the_policy_allows_exactly_the_style_that_is_there(page, written):
    (style,) = re.findall(r"<style>(.*?)</style>", written.read_text(encoding="utf-8"), re.DOTALL)
    (policy,) = [attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs]

    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "url(" not in style
    assert "@import" not in style


def test_the_plots_load_nothing_either(page):
    plots = [attrs["src"] for attrs in page.all("img") if "svg" in attrs["src"]]

    assert len(plots) == 4
    for plot in plots:
        drawn = base64.b64decode(plot.partition(",")[2]).decode()
        assert "<script" not in drawn
        assert all(
            target.startswith(("#", "data:")) for target in re.findall(r'(?:xlink:)?href="([^"]*)"', drawn)
        )


def test_every_picture_says_what_it_shows(page):
    alts = [attrs["alt"] for attrs in page.all("img")]

    assert all(alts)
    assert any("Expected calibration error" in alt for alt in alts)
    assert any("Confusion matrix of 3 classes: 6 images on the diagonal" in alt for alt in alts)
    assert any(alt.startswith("Shows blue: ") and alt.endswith("wrong0.png") for alt in alts)


def test_the_figures_are_on_it(page):
    text = words(page)

    # 6 of 36.
    assert "top-1 16.7% (7.9% to 31.9%)" in text
    assert "--min-top1 0.99: NOT kept (0.166667)" in text
    assert "broken.png" in text
    assert "Images that failed" in text
    assert "blue red 30" in text


def test_only_the_worst_mistakes_are_pictured(page):
    assert "24 of 30 wrong answers" in words(page)
    assert len([attrs for attrs in page.all("img") if "jpeg" in attrs["src"]]) == 24 + 24


def test_a_comparison_shows_the_images_on_which_two_models_differ(page):
    text = words(page)

    # Version 2 calls red green and green red: it is wrong on those 4 images, and on the 30 as version 1.
    assert "p = 0.125" in text
    assert "24 of 34: first those that only the baseline answers rightly" in text
    assert "wrong 1 ✓ red" in text
    assert "wrong 2 ✗ green" in text


def test_untrained_weights_are_at_the_top_and_a_report_is_replaced_as_a_whole(report, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("old")
    page = page_of(report("--model", "random"))

    assert "UNTRAINED" in page.text[: page.text.index("In short")]


def test_a_multi_label_model_has_its_own_page(report):
    text = words(page_of(report("--model", "tags", "--threshold", "0.9")))

    assert "mean average precision 100.0%" in text
    assert "Average precision by class" in text
    assert "Confusion matrix" not in text


def test_labels_paths_and_commands_are_shown_as_they_are(evaluate, tmp_path):
    encoded = tiny_model().SerializeToString()
    labels = (STRANGE, "<img src=x onerror=alert(2)>", "blue")
    write_model(tmp_path / "models", manifest=tiny_manifest("tiny", encoded, labels=labels))
    folder = tmp_path / "<b>data"
    folder.mkdir()
    rows = []
    for number, colour in enumerate([(10, 10, 200), (200, 10, 10), (10, 200, 10)]):
        name = f'{number}"><svg onload=alert(3)>.png'
        Image.new("RGB", (8, 8), colour).save(folder / name)
        rows.append('"' + name.replace('"', '""') + '",blue\n')
    (folder / "d.csv").write_text("".join(rows))
    with served(tmp_path / "models") as address:
        ran = evaluate(folder / "d.csv", "--server", address, "--report", tmp_path / "r.html")
    assert ran.status == 0, ran.output
    page = page_of(tmp_path / "r.html")

    assert page.open == []
    assert page.all("script") == page.all("b") == page.all("svg") == []
    assert STRANGE in page.text
    assert "<img src=x onerror=alert(2)>" in page.text
    assert '"><svg onload=alert(3)>.png' in page.text


def shown(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_thumbnail_is_upright_small_and_on_white(tmp_path):
    image = Image.new("RGB", (400, 200), "red")
    image.paste("blue", (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")

    turned, clear = shown(thumbnail(tmp_path / "turned.jpg")), shown(thumbnail(tmp_path / "clear.png"))

    assert turned.size == (64, 128)
    top, bottom = np.asarray(turned)[10, 30], np.asarray(turned)[118, 30]
    assert (top[2] > 200, bottom[0] > 200) == (True, True)
    assert np.asarray(clear).min() > 250
    assert max(clear.size) <= 128


def test_tiny_images_keep_their_pixels(tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "eye.png")

    drawn = np.asarray(shown(thumbnail(tmp_path / "eye.png")).convert("L"))

    assert drawn.shape == (128, 128)
    assert drawn[8, 8] > 230
    assert drawn[8, 24] < 25


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_cannot_be_shown_has_no_thumbnail(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)

    assert thumbnail(tmp_path / "x.png") is None
    assert thumbnail(tmp_path / "gone.png") is None
