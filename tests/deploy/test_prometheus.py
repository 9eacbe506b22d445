"""deploy/prometheus/ and the dashboard: syntax, and that rules, metrics and documents belong together.

That the expressions also return data is tests/e2e's to show, with a live Prometheus.
"""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from prometheus_client import CollectorRegistry

from support.promql import (
    DASHBOARD,
    DEPLOY,
    VARIABLES,
    adapter_expression,
    alert_expressions,
    dashboard_expressions,
    recording_expressions,
    rules,
)
from vistazo_server.telemetry.metrics import Metrics

PROMETHEUS = DEPLOY / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; Debian's package is `prometheus`"
)

# What prometheus_client's own collectors add, and Prometheus itself.
OF_OTHERS = {
    *("up", "process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes"),
    "process_start_time_seconds",
}


def promtool(*arguments) -> str:
    result = subprocess.run(["promtool", *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def our_metrics() -> set[str]:
    registry = CollectorRegistry()
    Metrics(registry).watch_certificate(lambda: 0.0)
    names = set()
    for family in registry.collect():
        if family.type == "counter":
            names.add(f"{family.name}_total")
        elif family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            names.add(family.name)
    return names


@needs_promtool
def test_the_rules_are_valid():
    promtool("check", "rules", *RULES)


@needs_promtool
@pytest.mark.parametrize("test", TESTS, ids=lambda path: path.name)
def test_the_rules_do_what_their_own_tests_say(test):
    assert "SUCCESS" in promtool("test", "rules", test)


@needs_promtool
def test_the_configurations_are_valid(tmp_path):
    promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")

    config = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-scrape.yaml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    # Debian's promtool is built without Kubernetes: the rest of the job is checked.
    assert [discovery["role"] for discovery in job.pop("kubernetes_sd_configs")] == ["pod"]
    file = tmp_path / "prometheus.yml"
    file.write_text(json.dumps(config), encoding="utf-8")
    promtool("check", "config", "--syntax-only", file)


@needs_promtool
def test_the_expressions_of_the_dashboard_and_the_adapter_are_valid(tmp_path):
    query = adapter_expression('namespace="vistazo"', "namespace, pod")
    expressions = [query, *dashboard_expressions().values()]
    records = [{"record": f"test:{number}", "expr": e} for number, e in enumerate(expressions)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "test", "rules": records}]}), encoding="utf-8")

    promtool("check", "rules", file)


def test_every_metric_that_is_asked_for_exists():
    known = our_metrics() | OF_OTHERS | set(recording_expressions())
    expressions = [
        *recording_expressions().values(), *alert_expressions().values(), *dashboard_expressions().values()
    ]  # fmt: skip
    asked = set()
    for expression in expressions:
        bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)', " ", expression)
        asked |= {name for name in re.findall(r"[a-z][\w:]*(?!\w*\s*\()", bare) if "_" in name}
    functions = {"histogram_quantile", "label_replace", "group_left"}

    assert asked - functions - known == set()
    assert len(asked) > 20


def test_every_alert_has_all_that_an_operator_needs():
    for alert in rules("alert"):
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}
        assert alert["annotations"]["runbook"] == f"docs/run/monitoring.md#{alert['alert'].lower()}"


def test_every_alert_fires_in_a_test_and_keeps_quiet_in_another():
    fired, quiet = set(), set()
    for file in TESTS:
        for case in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for check in case["alert_rule_test"]:
                (fired if check.get("exp_alerts") else quiet).add(check["alertname"])

    alerts = set(alert_expressions())
    assert fired == alerts
    assert quiet == alerts


def test_the_slo_is_the_edge_of_a_bucket():
    (slo,) = re.findall(r"vector\((.+)\)", recording_expressions()["vistazo:slo_seconds"])
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.request_seconds.labels("m", "1")
    edges = {
        sample.labels["le"]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "vistazo_inference_request_duration_seconds_bucket"
    }

    assert slo in edges


def test_the_dashboard_is_whole():
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    provisioned = yaml.safe_load(
        (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text(encoding="utf-8")
    )
    panels = dashboard["panels"]
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    text = DASHBOARD.read_text(encoding="utf-8")

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {
        source["uid"] for source in provisioned["datasources"]
    }
    assert {name for name in re.findall(r"\$(\w+)", text) if not name.isdecimal()} <= names | {
        "__rate_interval",
        "__all",
    }
    assert set(VARIABLES) == {f"${name}" for name in names} | {"$__rate_interval"}


def test_no_two_panels_overlap():
    cells = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in own) < 24
        assert not own & cells, panel["title"]
        cells |= own
