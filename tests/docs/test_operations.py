"""The documents name all that there is, and nothing that is not: alerts, metrics, flags, commands, links.

What is generated has test_reference.py.
"""

import re
import shlex

import click
import pytest
import yaml
from prometheus_client import CollectorRegistry

from support.documents import DOCUMENTS, PAGES, ROOT, blocks, commands, name_of, text_of
from support.promql import alert_expressions, rules
from vistazo_client.cli import main
from vistazo_server.settings import Settings
from vistazo_server.telemetry.metrics import Metrics

MONITORING = ROOT / "docs" / "run" / "monitoring.md"
COMPOSE = ROOT / "docs" / "run" / "compose.md"

# Flags of other programs, and of make's scripts, that the documents name.
OF_OTHERS = {"extra-index-url", "help"}

# Metrics that are named beside ours: Prometheus' own, and those that prometheus_client adds.
SUFFIXES = ("_bucket", "_sum", "_count")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


def anchor(heading: str) -> str:
    """Return a heading's anchor, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def headings(document):
    return re.findall(r"^#+ (.+)$", text_of(document), re.MULTILINE)


def metrics() -> set[str]:
    registry = CollectorRegistry()
    Metrics(registry).watch_certificate(lambda: 0.0)
    return {
        f"{family.name}_total" if family.type == "counter" else family.name for family in registry.collect()
    }


def our_commands() -> dict[str, click.Command]:
    context = click.Context(main)
    return {name: main.get_command(context, name) for name in main.list_commands(context)}


def flags_of(command: click.Command) -> set[str]:
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}


def test_every_alert_has_a_heading_and_no_heading_is_of_an_alert_that_is_gone():
    assert {heading for heading in headings(MONITORING) if heading.startswith("Vistazo")} == set(
        alert_expressions()
    )


def test_every_runbook_that_an_alert_names_is_there():
    for alert in rules("alert"):
        path, _, fragment = alert["annotations"]["runbook"].partition("#")
        assert fragment in map(anchor, headings(ROOT / path)), alert["alert"]


def test_every_metric_says_what_to_look_for():
    text = text_of(MONITORING)

    assert {name for name in metrics() if f"`{name}`" not in text} == set()


@each_document
def test_every_metric_that_is_named_exists(document):
    # A folder or a package is no metric: those have a slash or a dot beside their name.
    named = re.findall(r"(?<![\w/.`-])`?((?:vistazo|grpc_server)_[a-z_]+)`?(?![\w/.])", text_of(document))
    packages = {path.parent.name for path in ROOT.glob("*/vistazo_*/__init__.py")}

    families = {re.sub(f"({'|'.join(SUFFIXES)})$", "", name) for name in named}
    assert families - metrics() - packages - {"vistazo_models"} == set()


def test_every_variable_of_the_compose_files_is_explained():
    files = [ROOT / "docker-compose.yml", ROOT / "deploy" / "tls.yml"]

    variables = {
        name for file in files for name in re.findall(r"\$\{(\w+)", file.read_text(encoding="utf-8"))
    }
    assert variables
    assert variables - set(re.findall(r"`([A-Z_]+)`", text_of(COMPOSE))) == set()


def test_every_default_of_the_compose_files_is_what_the_page_says():
    text = text_of(COMPOSE)

    for name, default in re.findall(
        r"\$\{(\w+):-([^}]+)\}", (ROOT / "docker-compose.yml").read_text("utf-8")
    ):
        (row,) = [line for line in text.splitlines() if line.startswith("| `") and f"`{name}`" in line]
        assert f"`{default}`" in row, name


@each_document
def test_every_flag_that_is_named_exists(document):
    named = set(re.findall(r"`--([a-z][a-z0-9-]*)", text_of(document)))
    ours = {flag.lstrip("-") for command in our_commands().values() for flag in flags_of(command)}

    assert named - ours - OF_OTHERS == set()


@each_document
def test_every_variable_that_is_named_exists(document):
    named = set(re.findall(r"`(VISTAZO_[A-Z_]+)`", text_of(document)))
    settings = {f"VISTAZO_{name.upper()}" for name in Settings.model_fields}
    options = {
        parameter.envvar
        for command in our_commands().values()
        for parameter in command.params
        if isinstance(parameter.envvar, str)
    }

    assert named - settings - options == set()


@each_document
def test_every_command_line_of_ours_is_one_that_the_command_takes(document):
    known = our_commands()
    for line in commands(document):
        words = shlex.split(line, comments=True)
        if not words or words[0] != "vistazo" or len(words) < 2 or words[1].startswith("-"):
            continue
        assert words[1] in known, line
        flags = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        assert flags <= flags_of(known[words[1]]), line


@each_document
def test_every_command_that_is_named_exists(document):
    named = set(re.findall(r"`vistazo ([a-z]+)", text_of(document)))

    assert named - set(our_commands()) == set()


@each_document
def test_every_target_of_make_that_is_named_exists(document):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    text = text_of(document)
    named = set(re.findall(r"`make ([a-z][a-z-]*)", text))
    named |= {match[1] for line in commands(document) if (match := re.match(r"make ([a-z][a-z-]*)", line))}

    assert named - targets == set()


@each_document
def test_every_link_leads_somewhere(document):
    links = re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", text_of(document), flags=re.DOTALL))
    for target in links:
        if target.startswith(("https://", "http://")):
            continue
        path, _, fragment = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        assert place.exists(), target
        if fragment:
            assert fragment in map(anchor, headings(place)), target


@each_document
def test_every_file_that_is_named_exists(document):
    folders = "deploy|tests|bench|proto|preprocessing|export|server|client|docs"
    named = re.findall(rf"`((?:{folders})/[\w./-]+)`", text_of(document))

    # What `make` writes need not be there.
    made = {"bench/gpu.json"}
    assert [name for name in named if name not in made and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_is_in_the_navigation(page):
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    navigation = yaml.safe_load(text[text.index("\nnav:") :])["nav"]

    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [leaf for part in parts for leaf in leaves(part)]

    assert page.relative_to(ROOT / "docs").as_posix() in leaves(navigation)


@each_document
def test_the_python_that_is_shown_is_python(document):
    for code in blocks(document, "python"):
        compile(code, name_of(document), "exec")
