"""The PromQL of deploy/: every expression of the rules and of the dashboard, ready to be asked."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "vistazo.json"

# What Grafana puts in place of its variables.
VARIABLES = {"$__rate_interval": "1m", "$model": ".*"}

_THRESHOLD = re.compile(r"\s(?:==|!=|<=|>=|<|>)\s(?:on \(\) group_left \(\) )?[\w:.]+$")


def rules(kind: str) -> list[dict[str, Any]]:
    """Return the rules with the key `kind`, "alert" or "record", of all files."""
    files = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def alert_expressions() -> dict[str, str]:
    """Return alert → its expression without the comparison with the threshold."""
    expressions = {}
    for alert in rules("alert"):
        inner, found = _THRESHOLD.subn("", alert["expr"])
        assert found == 1, f"{alert['alert']}: expected EXPRESSION COMPARISON THRESHOLD, got {alert['expr']}"
        expressions[alert["alert"]] = inner
    return expressions


def recording_expressions() -> dict[str, str]:
    """Return record → its expression."""
    return {rule["record"]: rule["expr"] for rule in rules("record")}


def adapter_expression(matchers: str, group_by: str) -> str:
    """Return the query of the autoscaler's metric, as the Prometheus adapter would ask it."""
    file = DEPLOY / "kubernetes" / "prometheus-adapter.yaml"
    (rule,) = yaml.safe_load(file.read_text(encoding="utf-8"))["rules"]["custom"]
    return rule["metricsQuery"].replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", group_by)


def dashboard_expressions() -> dict[str, str]:
    """Return "panel, reference" → expression, with Grafana's variables replaced."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    expressions = {}
    for panel in panels:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            expressions[f"{panel['title']}, {target['refId']}"] = expression
    return expressions
