"""`docker-compose up -d` from a fresh clone: what comes up, and what an operator may then rely on.

The tests tell one story and build on each other, in this order. They need a Docker Engine; the images of the
registry, or stand-ins under their names; and for the export image a wheelhouse/ with the CPU build of torch
(`make wheelhouse`), unless several GB of CUDA are welcome.
"""

import os

import pytest

from support.compose import copy_checkout, deployed, missing, poll
from support.images import file
from support.load import background_load
from support.promql import alert_expressions, dashboard_expressions, recording_expressions
from vistazo_client import Client

pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(missing()), reason=f"the deployment's tests did not run: {missing()}"),
]

# Alerts whose expression has no value unless they fire, with the reason.
SILENT_WHEN_ALL_IS_WELL = {
    "VistazoAbsent": "absent() answers only when no target is known",
}


@pytest.fixture(scope="module")
def digits():
    from vistazo_export.digits import held_out

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
