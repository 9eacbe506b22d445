"""docker-compose.yml and the Dockerfile, as far as they can be judged without an engine."""

import re

import pytest
import yaml

from support.compose import ROOT
from support.promql import DEPLOY
from vistazo_server.settings import Settings

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
REQUIREMENTS = sorted((DEPLOY / "requirements").glob("*.txt"))

# In which the last answers leave, after drain delay and grace.
MARGIN_SECONDS = 3


def value(text: str) -> str:
    """A value with its variables at their defaults."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(text))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_and_bounded(name):
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert value(service["mem_limit"])[-1] in "mg"
    assert "container_name" not in service
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_the_loopback_address_by_default(name):
    assert all(value(port).startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


@pytest.mark.parametrize("name", ["server", "server-gpu"])
def test_the_settings_are_valid_and_docker_waits_longer_than_the_server_drains(name):
    environment = SERVICES[name]["environment"]
    settings = Settings(**{key.removeprefix("VISTAZO_").lower(): value(v) for key, v in environment.items()})

    grace = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.drain_delay_seconds + settings.grace_seconds + MARGIN_SECONDS


def test_every_replica_gets_a_port_of_its_own():
    (port,) = SERVICES["server"]["ports"]

    assert value(port) == "127.0.0.1:8001-8003:8001"


def test_prometheus_looks_for_the_replicas_by_their_common_name():
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "vistazo"]
    (discovery,) = job["dns_sd_configs"]

    for name in ("server", "server-gpu"):
        assert discovery["names"] == SERVICES[name]["networks"]["default"]["aliases"]
    assert f"VISTAZO_METRICS_LISTEN=0.0.0.0:{discovery['port']}" in DOCKERFILE


@pytest.mark.parametrize("name", ["export", "server", "server-gpu"])
def test_every_image_is_a_stage_with_locked_requirements(name):
    assert SERVICES[name]["build"]["target"] == name
    assert re.search(rf"^FROM \w+ AS {name}$", DOCKERFILE, re.MULTILINE)
    assert f"deploy/requirements/{name}.txt" in DOCKERFILE


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda path: path.stem)
def test_the_requirements_pin_every_version_for_any_build_of_torch(file):
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]

    assert len(lines) > 10
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[0-9][a-z0-9.]*", line)] == []


def test_the_base_image_can_be_chosen():
    assert re.findall(r"^ARG .*", DOCKERFILE, re.MULTILINE) == ["ARG PYTHON_IMAGE=python:3.11-slim-bookworm"]
    assert set(re.findall(r"^FROM (\S+:\S+|\$\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
