"""TLS and mTLS: who gets in, what those see who do not, and certificates that change while it serves."""

import asyncio
import datetime as dt
import socket
import ssl
import time

import grpc
import pytest
import structlog

from support.certificates import Authority, Files, chain
from support.process import vistazo
from support.serving import PATIENCE_SECONDS, Serving, labels, open_channel, raw, serving, until
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_server.errors import StartupError
from vistazo_server.tls import Certificates, not_after

RED = raw(plain(200, 10, 10))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(authority, tmp_path) -> Files:
    return authority.write(tmp_path)


async def outcome(port: int, credentials: grpc.ChannelCredentials | None) -> str:
    """Return the answer's label to one request on a connection of its own, or its status and detail."""
    async with open_channel(port, credentials) as channel:
        stub = pb_grpc.ClassificationServiceStub(channel)
        try:
            response = await stub.Classify(pb.ClassifyRequest(images=[RED]), timeout=PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return labels(response.results[0])[0]


def serial(port: int, authority: Authority) -> str:
    """Return the serial number of the certificate that a server shows."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as plain_socket,
        context.wrap_socket(plain_socket, server_hostname="localhost") as tls,
    ):
        return str(tls.getpeercert()["serialNumber"])


async def test_who_trusts_the_authority_is_answered(models, files, authority):
    async with serving(models, **files.settings(), credentials=authority.credentials()) as server:
        assert labels((await server.classify(RED)).results[0])[0] == "red"
        assert await server.health_of() == "SERVING"


async def test_who_trusts_another_authority_does_not_connect(models, files):
    async with serving(models, **files.settings()) as server:
        said = await outcome(server.server.port, Authority().credentials())

    assert said.startswith("UNAVAILABLE")
    assert "CERTIFICATE_VERIFY_FAILED" in said


async def test_an_expired_certificate_is_not_accepted_by_clients(models, authority, tmp_path):
    files = authority.write(tmp_path, expired=True)
    async with serving(models, **files.settings()) as server:
        said = await outcome(server.server.port, authority.credentials())

    assert said.startswith("UNAVAILABLE")
    assert "CERTIFICATE_VERIFY_FAILED" in said


async def test_plaintext_to_a_tls_port_fails_at_once_and_disturbs_nobody(models, files, authority):
    async with serving(models, **files.settings()) as server:
        assert (await outcome(server.server.port, None)).startswith("UNAVAILABLE")
        assert await outcome(server.server.port, authority.credentials()) == "red"


async def test_tls_to_a_plaintext_port_fails_clearly(models, authority):
    async with serving(models) as server:
        said = await outcome(server.server.port, authority.credentials())

    assert said.startswith("UNAVAILABLE")
    assert "WRONG_VERSION_NUMBER" in said


# mTLS


async def test_with_mtls_a_client_of_the_authority_is_answered(models, files, authority):
    client = authority.credentials(authority.issue())
    async with serving(models, **files.settings(mtls=True), credentials=client) as server:
        assert labels((await server.classify(RED)).results[0])[0] == "red"


@pytest.mark.parametrize("who", ["nobody", "a stranger", "somebody whose time is over"])
async def test_with_mtls_others_are_turned_away(models, files, authority, who):
    if who == "nobody":
        credentials = authority.credentials()
    elif who == "a stranger":
        credentials = authority.credentials(Authority().issue())
    else:
        credentials = authority.credentials(authority.issue(expired=True))
    async with serving(models, **files.settings(mtls=True)) as server:
        assert (await outcome(server.server.port, credentials)).startswith("UNAVAILABLE")
        assert await outcome(server.server.port, authority.credentials(authority.issue())) == "red"


# Certificates that change


async def test_a_new_certificate_is_shown_to_the_next_connection(models, files, authority, tmp_path):
    async with serving(models, **files.settings(), credentials=authority.credentials()) as server:
        await server.classify(RED)
        first = await asyncio.to_thread(serial, server.server.port, authority)
        assert await asyncio.to_thread(serial, server.server.port, authority) == first
        authority.write(tmp_path)

        assert await asyncio.to_thread(serial, server.server.port, authority) != first
        # The old connection goes on.
        assert labels((await server.classify(RED)).results[0])[0] == "red"


async def test_a_new_authority_of_clients_takes_the_place_of_the_old(models, files, authority):
    other = Authority()
    old, new = authority.credentials(authority.issue()), authority.credentials(other.issue())
    async with serving(models, **files.settings(mtls=True)) as server:
        port = server.server.port
        assert await outcome(port, old) == "red"
        assert (await outcome(port, new)).startswith("UNAVAILABLE")
        files.authority.write_bytes(other.pem)

        assert await outcome(port, new) == "red"
        assert (await outcome(port, old)).startswith("UNAVAILABLE")


@pytest.mark.parametrize("damage", ["garbage", "another's key", "gone", "half written", "no authority"])
async def test_new_files_that_cannot_be_used_leave_the_old_in_force_and_are_logged_once(
    models, files, authority, damage
):
    client = authority.credentials(authority.issue())
    async with serving(models, **files.settings(mtls=True)) as server:
        port = server.server.port
        with structlog.testing.capture_logs() as log:
            if damage == "garbage":
                files.certificate.write_text("no certificate")
            elif damage == "another's key":
                files.key.write_bytes(authority.issue().private_key_pem.bytes())
            elif damage == "gone":
                files.key.unlink()
            elif damage == "half written":
                files.certificate.write_bytes(files.certificate.read_bytes()[:200])
            else:
                files.authority.write_text("nobody")
            for _ in range(3):
                assert await outcome(port, client) == "red"
            authority.write(files.key.parent)
            assert await outcome(port, client) == "red"

    events = [line["event"] for line in log]
    assert events.count("certificates_unusable") == 1
    assert events.count("certificates_reloaded") == 1
    assert "PRIVATE" not in str(log)


async def test_certificates_are_rotated_under_load_without_an_error(models, files, authority, tmp_path):
    answered, wrong, ended = 0, [], asyncio.Event()

    async def call(server: Serving) -> None:
        nonlocal answered
        # A connection for each request, so that many fall into a rotation.
        while not ended.is_set():
            said = await outcome(server.server.port, authority.credentials())
            if said == "red":
                answered += 1
            else:
                wrong.append(said)

    async def call_on_one_connection(server: Serving) -> None:
        while not ended.is_set():
            await server.classify(RED)

    async with (
        serving(models, **files.settings(), credentials=authority.credentials()) as server,
        asyncio.TaskGroup() as callers,
    ):
        for _ in range(4):
            callers.create_task(call(server))
        callers.create_task(call_on_one_connection(server))
        serials = {await asyncio.to_thread(serial, server.server.port, authority)}
        for _ in range(10):
            seen = answered
            # Key and certificate one after the other: for a moment they do not belong together.
            await asyncio.to_thread(authority.write, tmp_path)
            serials.add(await asyncio.to_thread(serial, server.server.port, authority))
            await until(lambda seen=seen: answered >= seen + 10 or bool(wrong))
        ended.set()

    assert wrong == []
    assert len(serials) == 11


# The end of a certificate


@pytest.mark.parametrize("year", [1999, 2026, 2049, 2050, 2199])
def test_when_a_certificate_ends_is_read_from_it(authority, year):
    """Before 2050 the year has two digits in it, then four."""
    end = dt.datetime(year, 5, 6, 7, 8, 9, tzinfo=dt.UTC)

    leaf = authority.issue(ends=end)

    assert not_after(chain(leaf)) == end.timestamp()


async def test_metrics_tell_when_the_certificate_ends_and_a_new_one_is_followed(models, authority, tmp_path):
    name = "vistazo_tls_certificate_expiry_timestamp_seconds"
    files = authority.write(tmp_path, expired=True)
    with structlog.testing.capture_logs() as log:
        async with serving(models, **files.settings()) as server:
            expired = server.sample(name)
            authority.write(tmp_path)
            assert await outcome(server.server.port, authority.credentials()) == "red"
            renewed = server.sample(name)
    async with serving(models) as server:
        assert server.server.metrics.registry.get_sample_value(name) is None

    assert 0 < expired < time.time() < renewed
    assert [line["event"] for line in log].count("certificate_expired") == 1


# At the start


def test_an_encrypted_key_is_refused_and_not_asked_for_a_password(authority, tmp_path):
    from cryptography.hazmat.primitives import serialization

    files = authority.write(tmp_path)
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )

    with pytest.raises(StartupError, match="without a password"):
        Certificates(files.certificate, files.key).credentials()


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--tls-certificate", "server.crt"], 2, "expected --tls-key beside --tls-certificate"),
        (["--tls-key", "server.key"], 2, "expected --tls-certificate beside --tls-key"),
        (["--tls-client-ca", "ca.crt"], 2, "expected --tls-certificate and --tls-key beside --tls-client-ca"),
        (
            ["--tls-certificate", "nowhere.crt", "--tls-key", "nowhere.key"],
            1,
            "nowhere.crt cannot be read: No such file or directory",
        ),
    ],
)
def test_what_cannot_be_used_ends_the_command_with_one_line(models, flags, status, said):
    ended = vistazo("serve", "--models", models, "--listen", "127.0.0.1:0", "--metrics-listen", "", *flags)

    assert ended.returncode == status
    assert said in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
