"""`docker-compose up -d` from a fresh clone: what comes up, and what an operator may then rely on.

The tests tell one story and build on each other, in this order. They need a Docker Engine; the images of the
registry, or stand-ins under their names; and for the export image a wheelhouse/ with the CPU build of torch
(`make wheelhouse`), unless several GB of CUDA are welcome.
"""

import os
import time

import pytest

from support.certificates import Authority
from support.compose import ROOT, copy_checkout, deployed, missing, poll
from support.images import file
from support.load import background_load
from support.promql import adapter_expression, alert_expressions, dashboard_expressions, recording_expressions
from vistazo_client import TLS, AuthenticationError, Client, UnavailableError

pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.serial,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(missing()), reason=f"the deployment's tests did not run: {missing()}"),
]

# Alerts whose expression has no value unless they fire, with the reason.
SILENT_WHEN_ALL_IS_WELL = {
    "VistazoAbsent": "absent() answers only when no target is known",
    "VistazoCertificateExpiring": "only a server with TLS has the series; the last test looks for it",
}

TOKEN = "a-token-of-the-end-to-end-test"

SERVER_USER = 10001


@pytest.fixture(scope="module")
def digits():
    from vistazo_export.networks.digits import held_out

    return held_out()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    checkout = copy_checkout(tmp_path_factory.mktemp("clone") / "vistazo")
    with deployed(checkout, f"vistazo-e2e-{os.getpid()}") as deployment:
        # One image after the other: each is built by the cores that are there, and the second uses the
        # first one's stages.
        deployment.compose("build", "server")
        deployment.compose("build", "export")
        # A second precision in the same volume, for what compares the two.
        deployment.compose("run", "--rm", "export", "export", "lenet", "--precision", "int8")
        deployment.compose("up", "-d")
        yield deployment


def test_the_server_becomes_healthy_once_the_export_succeeded(deployment):
    (server,) = deployment.wait_until_healthy(replicas=1)

    state = deployment.inspect(server)
    assert state["State"]["Status"] == "running"
    assert state["RestartCount"] == 0


def test_the_server_runs_with_no_more_rights_than_it_needs(deployment):
    (server,) = deployment.containers("server")
    host, user = deployment.inspect(server)["HostConfig"], deployment.docker("exec", server, "id", "-u")

    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0
    assert host["NanoCpus"] > 0
    assert user == "10001"


def test_the_image_has_the_locked_versions_and_nothing_else(deployment):
    (server,) = deployment.containers("server")
    script = (
        "from importlib.metadata import distributions as d; print(*[f'{x.name}=={x.version}' for x in d()])"
    )
    installed = deployment.docker("exec", server, "python", "-c", script).lower().replace("_", "-").split()
    text = (ROOT / "deploy" / "requirements" / "server.txt").read_text(encoding="utf-8")

    locked = {line for line in text.splitlines() if not line.startswith("#")}
    assert {name for name in installed if not name.startswith("vistazo==")} == locked


@pytest.mark.parametrize("tool", ["gcc", "cc", "make", "ld"])
def test_no_compiler_is_left_in_the_images(deployment, tool):
    (server,) = deployment.containers("server")

    found = deployment.docker("exec", server, "python", "-c", f"import shutil; print(shutil.which('{tool}'))")
    assert found == "None"


def test_a_classification_from_the_host_is_answered(deployment, digits):
    (server,) = deployment.containers("server")
    with Client(deployment.address(server)) as client:
        answers = client.classify([file(image) for image in digits.images[:50]], model="lenet")

    right = [answer.top.label == str(label) for answer, label in zip(answers, digits.labels, strict=False)]
    assert sum(right) >= 48


def test_prometheus_sees_the_target_and_counts_the_request(deployment):
    targets = poll(
        lambda: deployment.query('up{job="vistazo"}'), until=lambda found: len(found) == 1, what="one target"
    )
    counted = poll(
        lambda: deployment.query('sum(vistazo_inference_requests_total{model="lenet",outcome="ok"})'),
        until=lambda found: bool(found) and float(found[0]["value"][1]) > 0,
        what="a counted request",
    )

    assert targets[0]["value"][1] == "1"
    assert counted


def test_every_expression_returns_data_after_a_short_load(deployment, digits):
    (server,) = deployment.containers("server")
    expressions = {
        *recording_expressions().values(),
        *(inner for alert, inner in alert_expressions().items() if alert not in SILENT_WHEN_ALL_IS_WELL),
        *dashboard_expressions().values(),
        adapter_expression('job="vistazo"', "instance"),
    }
    silent = set(expressions)
    with (
        Client(deployment.address(server)) as client,
        background_load(client, file(digits.images[0]), models=("lenet", "lenet-int8")) as load,
    ):

        def still_silent() -> set[str]:
            silent.difference_update(
                {expression for expression in silent if has_data(deployment, expression)}
            )
            return silent

        poll(still_silent, until=lambda left: not left, what="data for every expression")

    assert len(expressions) > 20
    assert load.errors == []


def has_data(deployment, expression: str) -> bool:
    """Whether Prometheus answers with a number, and not only with the quotient of two zeros."""
    return any(series["value"][1] != "NaN" for series in deployment.query(expression))


def test_three_replicas_share_the_load_and_prometheus_finds_them_all(deployment, digits):
    deployment.compose("up", "-d", "--scale", "server=3")
    servers = deployment.wait_until_healthy(replicas=3)
    poll(
        lambda: deployment.query('sum(up{job="vistazo"})'),
        until=lambda found: bool(found) and found[0]["value"][1] == "3",
        what="three targets that are up",
    )
    with client_of(deployment, servers) as client, background_load(client, file(digits.images[0])) as load:
        poll(
            lambda: {server: answered(deployment, server) for server in servers},
            until=lambda counts: min(counts.values()) >= 20,
            what="answers from every replica",
        )

    assert load.errors == []


def test_inside_the_network_the_client_balances_over_the_names_addresses(deployment):
    servers = deployment.containers("server")
    before = {server: answered(deployment, server) for server in servers}
    script = (
        "import numpy as np; from vistazo_client import Client\n"
        "with Client('dns:///vistazo:8001') as client:\n"
        "    for _ in range(30): client.classify(np.zeros((32, 32), np.uint8), model='lenet')"
    )
    deployment.docker("exec", servers[0], "python", "-c", script)

    share = {server: answered(deployment, server) - before[server] for server in servers}
    assert sum(share.values()) == 30
    assert min(share.values()) >= 5


def test_a_replica_that_is_killed_costs_no_caller_an_answer(deployment, digits):
    servers = deployment.wait_until_healthy(replicas=3)
    victim = servers[0]
    with client_of(deployment, servers) as client, background_load(client, file(digits.images[0])) as load:
        poll(lambda: len(load.answered), until=lambda count: count > 100, what="a load")
        # All but process 1, which then ends by itself: what the kernel does when memory runs out.
        deployment.docker("exec", victim, "python", "-c", "import os; os.kill(-1, 9)", check=False)
        poll(
            lambda: deployment.inspect(victim)["RestartCount"],
            until=lambda count: count == 1,
            what="a restart",
        )
        deployment.wait_until_healthy(replicas=3)
        # Its counters began anew at zero: these are requests after its death.
        poll(
            lambda: answered(deployment, victim),
            until=lambda count: count >= 20,
            what="its share of the load",
        )

    assert load.errors == []


def test_a_rolling_restart_under_load_fails_no_request(deployment, digits):
    servers = deployment.wait_until_healthy(replicas=3)
    with client_of(deployment, servers) as client, background_load(client, file(digits.images[0])) as load:
        for server in servers:
            deployment.docker("restart", "--time", "40", server)
            deployment.wait_until_healthy(replicas=3)
            restarted = time.monotonic()
            poll(lambda: answered(deployment, server), until=lambda count: count >= 20, what="its share")  # noqa: B023
            assert load.answered_since(restarted) > 0

    assert load.errors == []
    assert [deployment.inspect(server)["State"]["ExitCode"] for server in servers] == [0, 0, 0]


def test_tls_and_tokens_are_one_more_file(deployment, digits, tmp_path):
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    files = Authority().write(secrets)
    (secrets / "tokens").write_text(f"e2e inference {TOKEN}\n", encoding="utf-8")
    for path in (secrets, *secrets.iterdir()):
        os.chown(path, SERVER_USER, SERVER_USER)
    deployment.compose("up", "-d", "--no-deps", "--scale", "server=1", "server", secrets=secrets)

    # The container's own health check speaks TLS, too.
    (server,) = deployment.wait_until_healthy(replicas=1)
    address, image = deployment.address(server), file(digits.images[0])
    with Client(address, tls=TLS(ca=files.authority), token=TOKEN) as client:
        assert client.classify(image, model="lenet").top.label == str(digits.labels[0])
    with Client(address, tls=TLS(ca=files.authority)) as client, pytest.raises(AuthenticationError):
        client.classify(image, model="lenet")
    with Client(address, retries=0) as client, pytest.raises(UnavailableError):
        client.classify(image, model="lenet")
    poll(
        lambda: deployment.query(alert_expressions()["VistazoCertificateExpiring"]),
        until=lambda found: bool(found) and float(found[0]["value"][1]) > 0,
        what="the certificate's end",
    )


def client_of(deployment, servers) -> Client:
    """Return a client of all the servers, over the loopback address."""
    return Client(",".join(deployment.address(server) for server in servers))


def answered(deployment, server: str) -> float:
    """Return how many requests a server has answered since its process started, by its own metrics."""
    script = (
        "from urllib.request import urlopen; "
        "print(urlopen('http://127.0.0.1:8002/metrics', timeout=5).read().decode())"
    )
    lines = deployment.docker("exec", server, "python", "-c", script, check=False).splitlines()
    wanted = [
        line for line in lines if line.startswith("vistazo_inference_requests_total{") and '"ok"' in line
    ]
    return sum(float(line.rpartition(" ")[2]) for line in wanted)
