"""deploy/kubernetes/ against Kubernetes' schemas, and its parts against each other."""

import copy
import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from support.promql import DEPLOY
from vistazo_server.settings import Settings

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
# The oldest that has everything that is used: appProtocol, policies of unhealthy pods, probes over gRPC.
OLDEST, NEWEST = "1.27", kubernetes_validate.latest_version()

# What is left when the last answers were handed to the network.
MARGIN_SECONDS = 5


def resources() -> list[dict[str, Any]]:
    documents = []
    for name in KUSTOMIZATION["resources"]:
        documents += yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
    return documents


def one(kind: str, name: str = "vistazo") -> dict[str, Any]:
    (found,) = [r for r in resources() if r["kind"] == kind and r["metadata"]["name"] == name]
    return found


def pods() -> list[dict[str, Any]]:
    """The templates of all pods."""
    return [one("Deployment")["spec"]["template"], one("Job", "vistazo-export")["spec"]["template"]]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("resource", resources(), ids=lambda r: f"{r['kind']}-{r['metadata']['name']}")
def test_every_resource_is_as_its_schema_says(resource, version):
    kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelt_field_would_be_found():
    resource = copy.deepcopy(one("Deployment"))
    resource["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}

    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(resource, NEWEST, strict=True)


def test_every_file_is_a_resource_or_meant_for_something_else():
    elsewhere = {"kustomization.yaml", "prometheus-adapter.yaml", "prometheus-scrape.yaml"}

    assert {path.name for path in FOLDER.iterdir()} == elsewhere | set(KUSTOMIZATION["resources"])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize, is not installed")
def test_kustomize_builds_it():
    result = subprocess.run(
        ["kubectl", "kustomize", FOLDER], check=False, capture_output=True, text=True, timeout=60
    )

    assert result.returncode == 0, result.stderr
    built = list(yaml.safe_load_all(result.stdout))
    assert len(built) == len(resources())
    assert {r["metadata"].get("namespace", "vistazo") for r in built} == {"vistazo"}


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("Deployment", ("spec", "selector", "matchLabels")),
        ("Service", ("spec", "selector")),
        ("PodDisruptionBudget", ("spec", "selector", "matchLabels")),
    ],
)
def test_selectors_find_the_servers_and_nothing_else(kind, path):
    selector = one(kind)
    for key in path:
        selector = selector[key]
    matches = [selector.items() <= pod["metadata"]["labels"].items() for pod in pods()]

    assert matches == [True, False]


def test_the_network_policies_cover_every_pod_both_ways():
    policies = [r["spec"] for r in resources() if r["kind"] == "NetworkPolicy"]

    for pod in pods():
        labels = pod["metadata"]["labels"].items()
        (policy,) = [p for p in policies if p["podSelector"]["matchLabels"].items() <= labels]
        assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_ports_that_are_named_exist():
    container = one("Deployment")["spec"]["template"]["spec"]["containers"][0]
    names = {port["name"] for port in container["ports"]}
    policy = one("NetworkPolicy", "vistazo-server")["spec"]["ingress"]

    assert {port["targetPort"] for port in one("Service")["spec"]["ports"]} <= names
    assert {port["port"] for rule in policy for port in rule["ports"]} <= names
    assert container["livenessProbe"]["tcpSocket"]["port"] in names


def test_the_settings_exist_and_are_valid():
    data = one("ConfigMap")["data"]
    values = {name.removeprefix("VISTAZO_").lower(): value for name, value in data.items()}

    assert all(name.startswith("VISTAZO_") for name in data)
    settings = Settings(**values)
    ports = {p["name"]: p["containerPort"] for p in pods()[0]["spec"]["containers"][0]["ports"]}
    assert settings.listen.endswith(f":{ports['grpc']}")
    assert settings.metrics_listen.endswith(f":{ports['metrics']}")


def test_a_pod_has_longer_to_end_than_its_server_takes():
    settings = one("ConfigMap")["data"]
    longest = float(settings["VISTAZO_DRAIN_DELAY_SECONDS"]) + float(settings["VISTAZO_GRACE_SECONDS"])

    grace = one("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= longest + MARGIN_SECONDS


@pytest.mark.parametrize("pod", pods(), ids=["server", "export"])
def test_every_pod_meets_the_restricted_standard(pod):
    spec = pod["spec"]
    (container,) = spec["containers"]

    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes():
    (metric,) = one("HorizontalPodAutoscaler")["spec"]["metrics"]
    adapter = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = adapter["rules"]["custom"]

    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    series = re.match(r"\w+", rule["seriesQuery"])[0]
    assert series in rule["metricsQuery"]
    target = one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": one("Deployment")["metadata"]["name"],
    }
