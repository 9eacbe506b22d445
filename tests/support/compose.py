"""The deployment of docker-compose.yml, from a copy of the checkout, on ports that nobody else has."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]

# Images that are not in the cache take two or three minutes on two busy cores.
COMMAND_SECONDS = 900.0
PATIENCE_SECONDS = 120.0

T = TypeVar("T")


def _run(command: list[str], *, check: bool = True, **options: Any) -> "subprocess.CompletedProcess[str]":
    result = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS, **options
    )
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit status {result.returncode}\n{result.stderr[-4000:]}")
    return result


def compose_command() -> list[str]:
    """Return the command of the Compose that is installed, v2 before v1; empty without one."""
    if shutil.which("docker") and _run(["docker", "compose", "version"], check=False).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


def missing() -> str:
    """Return why the deployment cannot run here, or nothing."""
    if not compose_command():
        return "neither `docker compose` nor docker-compose is installed"
    if shutil.which("docker") is None or _run(["docker", "info"], check=False).returncode != 0:
        return "no Docker Engine answers"
    return ""


def poll(question: Callable[[], T], *, until: Callable[[T], bool], what: str) -> T:
    """Return the first answer that satisfies `until`; AssertionError with the last when none does in time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not until(answer := question()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:.0f} s for {what}; there is {answer}"
        time.sleep(0.5)
    return answer


class Deployment:
    """A running deployment. Traffic to it goes over the loopback address only."""

    def __init__(self, checkout: Path, project: str) -> None:
        self._checkout = checkout
        self._project = project
        first = free_ports(4)
        self.server_ports = range(first, first + 3)
        self.prometheus = f"http://127.0.0.1:{first + 3}"
        self._environment = os.environ | {
            "COMPOSE_PROJECT_NAME": project,
            "SERVER_PORTS": f"{first}-{first + 2}",
            "PROMETHEUS_PORT": str(first + 3),
        }

    def compose(self, *arguments: str, check: bool = True, secrets: Path | None = None) -> str:
        """Run a Compose command and return what it printed; with `secrets`, for TLS and tokens from there."""
        files = [] if secrets is None else ["-f", "docker-compose.yml", "-f", "deploy/tls.yml"]
        environment = self._environment | ({} if secrets is None else {"SECRETS": str(secrets)})
        result = _run(
            [*compose_command(), *files, *arguments], check=check, cwd=self._checkout, env=environment
        )
        return result.stdout if check else result.stdout + result.stderr

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Run a Docker command and return what it printed."""
        return _run(["docker", *arguments], check=check).stdout.strip()

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's running containers."""
        filters = (
            f"label=com.docker.compose.project={self._project}",
            f"label=com.docker.compose.service={service}",
        )
        command = ["ps", "--quiet", "--no-trunc", "--filter", filters[0], "--filter", filters[1]]
        return self.docker(*command).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what the Engine knows of a container."""
        return json.loads(self.docker("inspect", container))[0]

    def wait_until_healthy(self, *, replicas: int) -> list[str]:
        """Return the ids of the servers once there are so many and all are healthy."""

        def healths() -> dict[str, str]:
            return {
                name: self.inspect(name)["State"]["Health"]["Status"] for name in self.containers("server")
            }

        healthy = {"healthy"}
        states = poll(
            healths,
            until=lambda found: len(found) == replicas and set(found.values()) == healthy,
            what=f"{replicas} healthy servers",
        )
        return sorted(states)

    def address(self, container: str) -> str:
        """Return where the host reaches a server: HOST:PORT."""
        return self.docker("port", container, "8001/tcp").splitlines()[0]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that answer an instant query; AssertionError when Prometheus refuses it."""
        parameters = urllib.parse.urlencode({"query": expression})
        return self.prometheus_api(f"query?{parameters}")["result"]

    def prometheus_api(self, path: str) -> dict[str, Any]:
        """Return the data of an answer of Prometheus' HTTP API."""
        url = f"{self.prometheus}/api/v1/{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{url}: {error.read().decode()}") from None


def free_ports(count: int) -> int:
    """Return the first of `count` neighbouring ports that nobody listens on now."""
    for first in range(18000, 28000, count):
        probes = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        return first
    raise AssertionError(f"no {count} neighbouring ports are free")


def copy_checkout(target: Path) -> Path:
    """Copy what git knows or would add, as a fresh clone has it, and the wheelhouse where there is one."""
    listed = _run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        source, copy = ROOT / name, target / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
    if (ROOT / "wheelhouse").is_dir():
        shutil.copytree(ROOT / "wheelhouse", target / "wheelhouse")
    return target


@contextmanager
def deployed(checkout: Path, project: str) -> Iterator[Deployment]:
    """Hold a deployment of `checkout` that nothing was started of yet; at the end, nothing is left of it."""
    deployment = Deployment(checkout, project)
    try:
        yield deployment
    finally:
        deployment.compose("down", "--volumes", "--timeout", "2", check=False)
