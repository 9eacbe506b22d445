"""docs/operations.md names all that there is: metrics, alerts, variables; and no link leads nowhere."""

import re

import pytest
from prometheus_client import CollectorRegistry

from support.compose import ROOT
from support.promql import alert_expressions
from vistazo_server.settings import Settings
from vistazo_server.telemetry.metrics import Metrics

DOCUMENT = ROOT / "docs" / "operations.md"
OPERATIONS = DOCUMENT.read_text(encoding="utf-8")
HEADINGS = re.findall(r"^#+ (.+)$", OPERATIONS, re.MULTILINE)


def anchor(heading: str) -> str:
    """Return a heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def metrics() -> dict[str, tuple[str, ...]]:
    """Return every metric with its labels, also those that only a server with TLS has."""
    registry = CollectorRegistry()
    Metrics(registry).watch_certificate(lambda: 0.0)
    families = [(next(iter(family.collect())), family) for family in registry._collector_to_names]
    return {
        f"{shown.name}_total" if shown.type == "counter" else shown.name: tuple(family._labelnames)
        for shown, family in families
    }


@pytest.mark.parametrize("name", metrics())
def test_every_metric_has_a_row_with_its_labels(name):
    (row,) = re.findall(rf"^\| `{name}` \|([^|]*)\| .+ \|$", OPERATIONS, re.MULTILINE)

    labels = metrics()[name]
    assert row.strip() in (", ".join(labels), f"and {labels[-1] if labels else None}")


def test_no_row_is_of_a_metric_that_is_gone():
    assert set(re.findall(r"^\| `((?:vistazo|grpc)_\w+)` \|", OPERATIONS, re.MULTILINE)) == set(metrics())


def test_every_alert_has_a_heading_and_no_heading_is_of_an_alert_that_is_gone():
    assert {heading for heading in HEADINGS if heading.startswith("Vistazo")} == set(alert_expressions())


def test_every_variable_of_the_compose_file_is_explained():
    files = [ROOT / "docker-compose.yml", ROOT / "deploy" / "tls.yml"]

    variables = {
        name for file in files for name in re.findall(r"\$\{(\w+)", file.read_text(encoding="utf-8"))
    }
    assert variables - set(re.findall(r"`([A-Z_]+)`", OPERATIONS)) == set()


def test_every_flag_that_is_named_exists():
    flags = set(re.findall(r"`--([a-z-]+)", OPERATIONS))
    ours = {name.replace("_", "-") for name in Settings.model_fields}

    assert flags - ours - {"allow-untrained"} == set()


def test_every_link_leads_somewhere():
    targets = [link for link in re.findall(r"\]\(([^)]+)\)", OPERATIONS) if not link.startswith("https://")]

    assert targets
    for target in targets:
        path, _, fragment = target.partition("#")
        document = (DOCUMENT.parent / path).resolve() if path else DOCUMENT
        assert document.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), target


def test_every_file_that_is_named_exists():
    named = re.findall(r"`((?:deploy|tests)/[\w./-]+)`", OPERATIONS)

    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
