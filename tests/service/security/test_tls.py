"""TLS and mTLS: who gets in, what those see who do not, and certificates that change while it serves."""

import asyncio
import socket
import ssl
import time
from pathlib import Path

import grpc
import pytest
import structlog
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from support.certificates import Authority, Files
from support.key_kinds import KINDS, Issued, issue, key_of, key_usage
from support.key_kinds import authority as authority_of
from support.process import vistazo
from support.serving import PATIENCE_SECONDS, Serving, labels, open_channel, raw, serving, until
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_server.errors import StartupError
from vistazo_server.rpc.tls import Certificates

RED = raw(plain(200, 10, 10))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module", autouse=True)
def _keys_of_all_kinds() -> None:
    # Some take seconds to make, which would hold the event loop.
    for kind in KINDS:
        key_of(kind)


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


# What grpc's TLS can use. A test that fails here after an update of grpcio tells of a new ability of it.

UNUSABLE_KEYS = ("P-224", "P-521", "secp256k1", "brainpoolP256r1", "Ed25519", "Ed448", "DSA 2048")
USABLE_KEYS = tuple(kind for kind in KINDS if kind not in UNUSABLE_KEYS)
UNCHECKABLE_KEYS = ("secp256k1", "brainpoolP256r1", "Ed448", "DSA 2048")
CHECKABLE_KEYS = tuple(kind for kind in KINDS if kind not in UNCHECKABLE_KEYS)


def with_key(kind: str) -> Issued:
    return issue(kind, authority_of())


def with_intermediate(kind: str) -> Issued:
    return issue("P-256", issue(kind, authority_of(), is_authority=True))


def with_extension(extension: x509.ExtensionType, kind: str) -> Issued:
    return issue(kind, authority_of(), extensions=[extension])


FOR_CLIENTS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
FOR_SERVERS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])

UNUSABLE = {
    **{f"a key of {kind}": (with_key, kind, r"a key that grpc can serve with") for kind in UNUSABLE_KEYS},
    **{
        f"an intermediate of {kind}": (with_intermediate, kind, r"an issuer with a key that grpc can check")
        for kind in UNCHECKABLE_KEYS
    },
    **{
        f"a key of {kind} that only enciphers": (
            lambda kind: with_extension(key_usage("key_encipherment"), kind),
            kind,
            r"whose key usage has digitalSignature; got one without",
        )
        for kind in ("RSA 2048", "P-256")
    },
    "a client's certificate": (
        lambda kind: with_extension(FOR_CLIENTS, kind),
        "P-256",
        r"whose extended key usage has serverAuth; got one without",
    ),
}
USABLE = {
    **{f"a key of {kind}": (with_key, kind) for kind in USABLE_KEYS},
    **{f"an intermediate of {kind}": (with_intermediate, kind) for kind in CHECKABLE_KEYS},
    "a key that signs": (lambda kind: with_extension(key_usage("digital_signature"), kind), "RSA 2048"),
    "a certificate for both sides": (lambda kind: with_extension(FOR_SERVERS, kind), "P-384"),
}


async def grpc_alone(issued: Issued) -> str:
    """Return what a client of a bare grpc server sees: "ok", or why there is no handshake."""

    class Echo(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
                return request

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Echo()])
    credentials = grpc.ssl_server_credentials([(issued.key_pem, issued.chain)])
    try:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    except RuntimeError:
        return "not even read"
    await server.start()
    try:
        async with open_channel(port, issued.credentials()) as channel:
            await channel.unary_unary("/test.Echo/Echo")(b"hello", timeout=PATIENCE_SECONDS)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    else:
        return "ok"
    finally:
        await server.stop(None)


@pytest.mark.parametrize("what", UNUSABLE)
async def test_files_that_no_handshake_succeeds_with_are_refused_at_the_start(tmp_path, what):
    make, kind, expected = UNUSABLE[what]
    issued = make(kind)
    files = issued.write(tmp_path)
    assert await grpc_alone(issued) != "ok"

    with pytest.raises(StartupError, match=rf"^TLS: \S*server\.crt: expected .*{expected}") as refused:
        Certificates(files.certificate, files.key).credentials()

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("what", USABLE)
async def test_all_others_are_served_with(models, tmp_path, what):
    make, kind = USABLE[what]
    issued = make(kind)
    files = issued.write(tmp_path)
    assert await grpc_alone(issued) == "ok"
    async with serving(models, **files.settings()) as server:
        assert await outcome(server.server.port, issued.credentials()) == "red"


@pytest.mark.parametrize("what", UNUSABLE)
async def test_a_rotation_to_such_files_leaves_the_old_in_force_and_is_logged_once(models, tmp_path, what):
    make, kind, expected = UNUSABLE[what]
    good, renewed = with_key("P-256"), with_key("RSA 2048")
    files = good.write(tmp_path)
    async with serving(models, **files.settings()) as server:
        port = server.server.port
        with structlog.testing.capture_logs() as log:
            expiry = server.sample("vistazo_tls_certificate_expiry_timestamp_seconds")
            make(kind).write(tmp_path)
            for _ in range(3):
                assert await outcome(port, good.credentials()) == "red"
            assert server.sample("vistazo_tls_certificate_expiry_timestamp_seconds") == expiry
            renewed.write(tmp_path)
            assert await outcome(port, renewed.credentials()) == "red"

    unusable = [line for line in log if line["event"] == "certificates_unusable"]
    assert len(unusable) == 1
    assert expected in unusable[0]["reason"]
    assert [line["event"] for line in log].count("certificates_reloaded") == 1


def client_of(kind: str, folder: Path) -> tuple[Path, grpc.ChannelCredentials, Issued]:
    """Return the file of a clients' authority, and how a client of it connects to a server of another."""
    server, clients = with_key("P-256"), authority_of(kind)
    client = issue("P-256", clients)
    (folder / "clients.crt").write_bytes(clients.authority)
    server.write(folder)
    credentials = grpc.ssl_channel_credentials(server.authority, client.key_pem, client.chain)
    return folder / "clients.crt", credentials, clients


@pytest.mark.parametrize("kind", CHECKABLE_KEYS)
async def test_clients_of_an_authority_whose_key_grpc_checks_are_answered(models, tmp_path, kind):
    clients, credentials, _ = client_of(kind, tmp_path)
    files = Files(tmp_path / "server.crt", tmp_path / "server.key", clients)
    async with serving(models, **files.settings(mtls=True)) as server:
        assert await outcome(server.server.port, credentials) == "red"


@pytest.mark.parametrize("kind", UNCHECKABLE_KEYS)
async def test_an_authority_of_clients_that_none_could_connect_with_is_refused(models, tmp_path, kind):
    clients, credentials, authority = client_of(kind, tmp_path)
    files = Files(tmp_path / "server.crt", tmp_path / "server.key", clients)
    with pytest.raises(
        StartupError, match=r"^TLS: \S*clients\.crt: expected an authority with a key that grpc"
    ):
        Certificates(files.certificate, files.key, files.authority).credentials()
    # Beside another it harms nobody; in the place of the other it is left out.
    _, good, other = client_of("P-256", tmp_path)
    clients.write_bytes(authority.authority + other.authority)
    async with serving(models, **files.settings(mtls=True)) as server:
        port = server.server.port
        assert await outcome(port, good) == "red"
        clients.write_bytes(authority.authority)
        assert await outcome(port, good) == "red"
        assert (await outcome(port, credentials)).startswith("UNAVAILABLE")


async def test_a_byte_order_mark_before_the_files_does_not_matter(models, tmp_path):
    issued = with_key("P-256")
    files = issued.write(tmp_path)
    for path in (files.certificate, files.key, files.authority):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    client = grpc.ssl_channel_credentials(issued.authority, issued.key_pem, issued.chain)
    async with serving(models, **files.settings(mtls=True)) as server:
        assert await outcome(server.server.port, client) == "red"


def test_openssls_own_kind_of_pem_is_refused_and_the_older_one_is_not(tmp_path):
    issued = with_key("P-256")
    files = issued.write(tmp_path)
    files.certificate.write_bytes(issued.chain.replace(b" CERTIFICATE-", b" X509 CERTIFICATE-"))
    Certificates(files.certificate, files.key).credentials()
    files.certificate.write_bytes(issued.chain.replace(b" CERTIFICATE-", b" TRUSTED CERTIFICATE-"))

    with pytest.raises(StartupError, match=r"server\.crt: expected certificates in PEM, got a TRUSTED CERT"):
        Certificates(files.certificate, files.key).credentials()


# The end of a certificate


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


def test_a_key_that_cannot_be_served_with_ends_the_command_with_one_line(models, tmp_path):
    files = with_key("Ed25519").write(tmp_path)
    free = ["--models", models, "--listen", "127.0.0.1:0", "--metrics-listen", ""]

    ended = vistazo("serve", *free, *files.flags())

    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"Error: TLS: {files.certificate}: expected a certificate for a key that grpc can serve with: "
        "RSA, P-256 or P-384; got Ed25519"
    ]
