"""TLS, mTLS and tokens as the client's callers see them, against real servers with real certificates."""

import grpc
import pytest
from click.testing import CliRunner

from support.certificates import Authority, Files
from support.process import vistazo
from vistazo_client import (
    TLS,
    AuthenticationError,
    PermissionDeniedError,
    TLSError,
    UnavailableError,
)
from vistazo_client.cli import main

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return Authority()


@pytest.fixture
def files(authority, tmp_path) -> Files:
    return authority.write(tmp_path)


def test_a_server_of_the_given_authority_is_talked_to(open_client, start_tls, files):
    server = start_tls(files)
    with open_client(server.address, tls=TLS(ca=files.authority)) as client:
        assert client.classify(b"a cat").top.label == "a cat"
        assert [result.top.label for _, result in client.classify_stream([(1, b"a dog")])] == ["a dog"]


def test_several_tls_servers_are_each_known_by_their_own_name(open_client, start_tls, files):
    servers = [start_tls(files), start_tls(files)]
    with open_client([server.address for server in servers], tls=TLS(ca=files.authority)) as client:
        for number in range(10):
            client.classify(b"%d" % number)

    assert [len(server.service.requests) for server in servers] == [5, 5]


def test_a_server_that_another_authority_signed_is_not_trusted(
    open_client, start_tls, files, stranger, tmp_path
):
    server = start_tls(files)
    (tmp_path / "stranger").mkdir()
    ca = stranger.write(tmp_path / "stranger").authority
    with open_client(server.address, tls=TLS(ca=ca)) as client, pytest.raises(TLSError) as failure:
        client.classify(b"a cat")

    assert str(failure.value) == (
        f"the certificate of the server at {server.address} is not trusted: "
        "another authority than the given CA signed it, or it is not valid now"
    )
    assert failure.value.code is grpc.StatusCode.UNAVAILABLE


def test_the_public_authorities_do_not_know_this_server(open_client, start_tls, files):
    server = start_tls(files)
    with open_client(server.address, tls=True) as client, pytest.raises(TLSError, match="is not trusted"):
        client.models()


def test_an_expired_certificate_is_called_expired(open_client, start_tls, authority, tmp_path):
    files = authority.write(tmp_path, expired=True)
    server = start_tls(files)
    with (
        open_client(server.address, tls=TLS(ca=files.authority)) as client,
        pytest.raises(TLSError) as failure,
    ):
        client.health()

    assert str(failure.value) == f"the certificate of the server at {server.address} has expired"


def test_a_certificate_for_another_name_is_refused_unless_that_name_is_expected(
    open_client, start_tls, authority, tmp_path
):
    files = authority.write(tmp_path, names=("vistazo.example",))
    server = start_tls(files)
    with (
        open_client(server.address, tls=TLS(ca=files.authority)) as client,
        pytest.raises(TLSError, match=f"of the server at {server.address} is for another name"),
    ):
        client.classify(b"a cat")
    with open_client(server.address, tls=TLS(ca=files.authority, server_name="vistazo.example")) as client:
        assert client.classify(b"a cat").top.label == "a cat"


def test_tls_to_a_plaintext_port_is_recognised(open_client, server, files):
    with (
        open_client(server.address, tls=TLS(ca=files.authority)) as client,
        pytest.raises(TLSError, match=f"^the server at {server.address} does not speak TLS$"),
    ):
        client.classify(b"a cat")


def test_plaintext_to_a_tls_port_hints_at_tls(open_client, start_tls, files):
    server = start_tls(files)
    with open_client(server.address) as client, pytest.raises(UnavailableError) as failure:
        client.classify(b"a cat")

    assert str(failure.value) == (
        f"the server at {server.address} closed the connection at once; "
        "does it want TLS, or a client's certificate?"
    )


def test_a_client_shows_its_certificate_to_a_server_that_asks(
    open_client, start_tls, files, authority, tmp_path
):
    server = start_tls(files, mtls=True)
    certificate, key = authority.write_client(tmp_path)
    with open_client(server.address, tls=TLS(ca=files.authority, certificate=certificate, key=key)) as client:
        assert client.classify(b"a cat").top.label == "a cat"


def test_a_server_that_asks_for_a_certificate_turns_others_away(
    open_client, start_tls, files, stranger, tmp_path
):
    server = start_tls(files, mtls=True)
    (tmp_path / "stranger").mkdir()
    certificate, key = stranger.write_client(tmp_path / "stranger")
    for tls in (
        TLS(ca=files.authority),
        TLS(ca=files.authority, certificate=certificate, key=key),
    ):
        with open_client(server.address, tls=tls) as client, pytest.raises(UnavailableError):
            client.classify(b"a cat")
    assert server.service.requests == []


def test_files_that_cannot_be_used_are_named_when_the_client_is_made(open_client, files, tmp_path, authority):
    (tmp_path / "other").mkdir()
    _, other_key = authority.write_client(tmp_path / "other")
    certificate, key = authority.write_client(tmp_path)
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n")
    for tls, said in (
        (TLS(ca=tmp_path / "gone.pem"), "gone.pem: the CA certificate cannot be read"),
        (TLS(ca=text), "text.pem: expected a CA certificate in PEM"),
        (TLS(ca=broken), "broken.pem: expected CA certificates in PEM"),
        (TLS(certificate=certificate), "expected a certificate and its key, got only one"),
        (TLS(certificate=certificate, key=other_key), "expected a certificate in PEM and its key"),
        (TLS(certificate=key, key=certificate), "expected a certificate in PEM and its key"),
    ):
        with pytest.raises(ValueError, match=said):
            open_client("127.0.0.1:1", tls=tls)


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    return path


def test_a_token_goes_with_every_call(open_client, server, token_file):
    for settings in ({"token": "s3cret"}, {"token_file": token_file}):
        with open_client(server.address, **settings) as client:
            client.classify(b"a cat")
            list(client.classify_stream([(1, b"a cat")]))

    assert [seen.get("authorization") for seen in server.service.metadata] == ["Bearer s3cret"] * 4


def test_without_a_token_none_is_sent(client, server):
    client.classify(b"a cat")

    assert "authorization" not in server.service.metadata[0]


def test_a_token_file_is_read_again_when_it_changes(open_client, server, token_file):
    with open_client(server.address, token_file=token_file) as client:
        client.classify(b"a cat")
        token_file.write_text("rotated")
        client.classify(b"a cat")
        token_file.unlink()
        with pytest.raises(AuthenticationError, match=r"token: cannot be read \(No such file or directory\)"):
            client.classify(b"a cat")

    assert [seen["authorization"] for seen in server.service.metadata] == ["Bearer s3cret", "Bearer rotated"]


@pytest.mark.parametrize("content", ["", " \n", "two words", "zwei\nZeilen", "señal", "\x00"])
def test_a_token_that_is_none_is_refused_without_being_quoted(open_client, tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(ValueError, match="expected") as refusal:
        open_client(token_file=path)

    assert not content.strip("\x00 \n") or content not in str(refusal.value)
    with pytest.raises(ValueError, match="expected"):
        open_client(token=content or " ")


def test_a_token_and_a_token_file_are_one_too_many(open_client, token_file):
    with pytest.raises(ValueError, match="expected a token or a token file, got both"):
        open_client(token="s3cret", token_file=token_file)


@pytest.mark.parametrize("address", ["10.0.0.1:8001", "127.0.0.1:1,vistazo:2", "dns:///vistazo:1"])
def test_a_token_is_not_sent_where_others_could_read_it(open_client, address, files):
    with pytest.raises(ValueError, match=f"^expected TLS for a token to {address}"):
        open_client(address, token="s3cret")

    for settings in ({"tls": TLS(ca=files.authority)}, {"allow_insecure_token": True}):
        with open_client(address, token="s3cret", **settings) as client:
            assert client.address == address


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, AuthenticationError),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDeniedError),
    ],
)
def test_a_token_that_does_not_do_is_an_exception_of_its_own(open_client, server, code, kind):
    server.always(code, "no")
    server.service.stream_script = lambda request, context: context.abort(code, "no")
    with open_client(server.address, token="wrong") as client, pytest.raises(kind, match="no"):
        client.classify(b"a cat")
    assert len(server.service.requests) == 1


def test_a_token_is_in_no_repr_and_no_message(open_client, server):
    server.always(grpc.StatusCode.UNAUTHENTICATED, "no")
    with open_client(server.address, token="s3cret") as client:
        with pytest.raises(AuthenticationError) as failure:
            client.classify(b"a cat")
        assert "s3cret" not in repr(client) + str(failure.value)


def test_the_commands_speak_tls_and_show_certificates_and_tokens(
    start_tls, files, authority, tmp_path, token_file
):
    server = start_tls(files, mtls=True)
    server.set_serving("", serving=True)
    certificate, key = authority.write_client(tmp_path)
    image = tmp_path / "cat.jpg"
    image.write_text("a cat")
    options = ["--tls-ca", files.authority, "--tls-certificate", certificate, "--tls-key", key]
    environment = {
        "VISTAZO_SERVER": server.address,
        "VISTAZO_CLIENT_TLS_CA": str(files.authority),
        "VISTAZO_CLIENT_TLS_CERTIFICATE": str(certificate),
        "VISTAZO_CLIENT_TLS_KEY": str(key),
        "VISTAZO_CLIENT_TOKEN": "s3cret",
    }

    assert vistazo("health", "--server", server.address, *options).stdout == "SERVING\n"
    assert "resnet18" in vistazo("models", "--server", server.address, *options).stdout
    result = vistazo(
        "classify", image, "--server", server.address, *options, "--token-file", token_file, "--json"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert vistazo("classify", image, env=environment).returncode == 0
    assert [seen["authorization"] for seen in server.service.metadata] == ["Bearer s3cret"] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls-ca", "/nowhere/ca.pem"], "/nowhere/ca.pem: the CA certificate cannot be read"),
        (["--token-file", "/nowhere/token"], "token file /nowhere/token: cannot be read"),
        (["--server", "10.0.0.1:1", "--token", "s3cret"], "expected TLS for a token to 10.0.0.1:1"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(options, said):
    result = CliRunner().invoke(main, ["health", *options])

    assert result.exit_code == 2
    assert said in result.stderr


def test_a_command_says_why_tls_failed_in_one_line(start_tls, files, stranger, tmp_path):
    server = start_tls(files)
    (tmp_path / "stranger").mkdir()
    ca = stranger.write(tmp_path / "stranger").authority
    result = vistazo("health", "--server", server.address, "--tls-ca", ca, "--retries", "0")

    assert result.returncode == 1
    # grpc may have written a line of its own before.
    assert result.stderr.splitlines()[-1].startswith("Error: the certificate of the server at")
