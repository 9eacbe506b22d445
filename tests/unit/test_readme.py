"""The README says what the code does: settings, metrics, files and links cannot drift away from it."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from vistazo_server.settings import Settings
from vistazo_server.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_table_as_it_is_declared(name):
    field = Settings.model_fields[name]
    flag, variable = f"--{name.replace('_', '-')}", f"VISTAZO_{name.upper()}"
    default = "none" if field.default == "" else field.default

    assert f"| `{flag}` | `{variable}` | `{default}` | {' '.join(field.description.split())} |" in README


def test_every_metric_is_named():
    registry = CollectorRegistry()
    Metrics(registry)
    names = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}

    missing = {name for name in names if name not in README}
    assert missing <= {"vistazo_inference_queue_limit"}  # written as a suffix of its neighbour


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("package", ["server/vistazo_server", "export/vistazo_export"])
def test_the_layout_names_every_module(package):
    modules = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py", "errors.py"}

    assert {module for module in modules if module not in README} == set()


def test_no_placeholder_was_left_behind():
    assert "" not in README
