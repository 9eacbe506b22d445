"""A client in another language that has only the .proto: Node, with gRPC's own JavaScript packages."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import vistazo_proto
from support.images import file
from support.serving import occupy, raw, serving, softmax, until
from support.tiny import plain

pytestmark = pytest.mark.slow  # programs of their own, some compiled first

HERE = Path(__file__).parent / "node"
PROTO = Path(vistazo_proto.__file__).with_name("classification.proto")

# What npm says when the reason is the network, not the package.
NO_REGISTRY = (
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "ENETUNREACH",
    "E403",
    "E407",
)


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node client with its packages, in a folder of its own: the checkout stays clean."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")
    folder = tmp_path_factory.mktemp("node")
    for source in HERE.iterdir():
        if source.is_file():
            shutil.copy(source, folder)
    try:
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("npm got nothing from its registry in 90 s")
    if done.returncode != 0 and any(reason in done.stderr for reason in NO_REGISTRY):
        pytest.skip("npm cannot reach its registry")
    assert done.returncode == 0, done.stderr
    return folder


async def classify(
    node_client: Path, address: str, *files: Path, model: str = "tiny"
) -> list[dict[str, Any]]:
    """Return what the Node client printed for each file."""
    process = await asyncio.create_subprocess_exec(
        *("node", "classify.js", address, str(PROTO), str(PROTO.parent), model, *map(str, files)),
        cwd=node_client,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    return [json.loads(line) for line in output.decode().splitlines()]


async def test_a_node_client_classifies_a_jpeg(models, node_client, tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(file(plain(100, 120, 110, height=48, width=64), "JPEG", quality=100))
    async with serving(models) as server:
        (answer,) = await classify(node_client, server.address, photo)

    response = answer["response"]
    assert (response["model"], response["version"], response["batch_size"]) == ("tiny", "1", 1)
    predictions = response["results"][0]["predictions"]["predictions"]
    assert [(one["index"], one["label"]) for one in predictions] == [(1, "green"), (2, "blue"), (0, "red")]
    # JPEG may round a channel by a step.
    expected = softmax(12, 11, 10)
    assert [one["probability"] for one in predictions] == pytest.approx(expected, abs=0.03)


async def test_a_node_client_sees_the_status_and_the_message_of_a_bad_request(models, node_client, tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("This is a text.")
    async with serving(models) as server:
        (bad_image,) = await classify(node_client, server.address, text)
        (no_model,) = await classify(node_client, server.address, text, model="nobody")

    assert bad_image["code"] == "INVALID_ARGUMENT"
    assert bad_image["details"] == (
        "images[0]: expected a JPEG, PNG, WebP or BMP file, got 15 bytes of text; send the image file itself"
    )
    assert "grpc-retry-pushback-ms" not in bad_image["trailers"]
    assert no_model["code"] == "NOT_FOUND"


async def test_a_node_client_is_told_when_to_retry(slow_models, node_client, tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(file(plain(1, 2, 3), "JPEG"))
    async with serving(slow_models, max_batch_size=1, queue_limit=4) as server:
        busy = await occupy(server, raw(plain(1, 2, 3)))
        # More than the limit, which an empty queue takes: Node needs a moment to start.
        many = asyncio.create_task(server.classify(*[raw(plain(1, 2, 3))] * 24))
        await until(lambda: server.queued() >= 20)
        (refused,) = await classify(node_client, server.address, photo)
        many.cancel()
        await asyncio.gather(*busy)

    assert refused["code"] == "RESOURCE_EXHAUSTED"
    assert int(refused["trailers"]["grpc-retry-pushback-ms"]) >= 1


def test_the_lock_file_names_no_registry_but_npms_own():
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]

    assert {"node_modules/@grpc/grpc-js", "node_modules/@grpc/proto-loader"} <= set(packages)
    for name, package in packages.items():
        assert package.get("resolved", "https://registry.npmjs.org/").startswith(
            "https://registry.npmjs.org/"
        )
        assert not name or package["integrity"].startswith("sha512-")
