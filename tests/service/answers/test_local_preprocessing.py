"""What a client prepares is what the server prepares, to the bit: what reaches the model, and the answer."""

import asyncio
import io
import math
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from support.images import animation, file, turned
from support.kinds import HEIGHT, KINDS, WIDTH, write_kind, write_kinds
from support.photographs import cut, parity_images, with_alpha
from support.serving import serving, until
from support.tiny import plain
from vistazo_client import AsyncClient, Client, InvalidImageError, ModelNotFoundError
from vistazo_proto import classification_pb2 as pb
from vistazo_server.batching.batcher import DynamicBatcher

for package in ("skimage", "sklearn"):
    pytest.importorskip(package, reason="ships the photographs; pip install 'vistazo[export]'")

# Graphs are written in threads: it takes longer than a loop may be held on a busy machine.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of palettes with transparency


@pytest.fixture
def reached(monkeypatch):
    """The samples that reached a model, in the order of their arrival."""
    samples = []
    infer = DynamicBatcher.infer

    async def spy(self, arrived, **keywords):
        samples.extend(np.array(sample) for sample in arrived)
        return await infer(self, arrived, **keywords)

    monkeypatch.setattr(DynamicBatcher, "infer", spy)
    # A request that is sent early has a second one beside it, and their samples may arrive in any order.
    monkeypatch.setattr("vistazo_client._codec.GATHER_SECONDS", math.inf)
    return samples


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    repository = tmp_path_factory.mktemp("kinds")
    write_kinds(repository)
    return repository


def odd_images():
    """Return images that say more than their pixels do, and pixels of every kind that callers have."""
    photo = cut(60, 44)
    rng = np.random.default_rng(0)
    pixels = {
        f"array of {channels}": rng.integers(0, 256, (41, 53, channels), dtype=np.uint8)
        for channels in (1, 2, 3, 4)
    }
    return {
        **{f"orientation {number}": turned(photo, number, "JPEG") for number in range(1, 9)},
        "16-bit grey": file(rng.integers(0, 65536, (50, 30), dtype=np.uint16)),
        **pixels,
        "flat array": pixels["array of 1"][:, :, 0],
        "strided array": pixels["array of 3"][::-2, ::3],
        "array of the model's size": rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        "PIL": photo,
        "PIL with alpha": with_alpha(photo),
        "PIL palette": photo.quantize(16),
        "PIL of 1 bit": photo.convert("1"),
        "PIL of CMYK": photo.convert("CMYK"),
        "lazy PIL": Image.open(io.BytesIO(file(photo, "JPEG"))),
    }


@pytest.fixture(scope="module")
def photographs():
    return parity_images()


@pytest.fixture(scope="module")
def small_images(photographs):
    """Files of every format, and what else callers have. Sizes are for the one model of the other test."""
    files = {name: data for name, data in photographs.items() if "/" not in name and " by " not in name}
    return files | odd_images()


async def both(server, images, model, reached):
    """Return, for preparing at the server and here, the answers and what reached the model."""
    outcomes = []
    for preprocess in ("server", "local"):
        reached.clear()
        async with AsyncClient(server.address, preprocess=preprocess, timeout=60) as client:
            answers = []
            # One request after the other, so that samples arrive in order.
            for begin in range(0, len(images), 8):
                answers += await client.classify(images[begin : begin + 8], model=model, top_k=5)
        outcomes.append(([answer.predictions for answer in answers], list(reached)))
    return outcomes


async def test_all_images_of_the_parity_test_reach_an_imagenet_model_alike(photographs, tmp_path, reached):
    images = photographs
    await asyncio.to_thread(write_kind, tmp_path, "imagenet", KINDS["imagenet"])
    async with serving(tmp_path) as server:
        (theirs, served), (ours, sent) = await both(server, list(images.values()), "imagenet", reached)

    assert len(images) >= 55
    assert len(served) == len(sent) == len(images)
    different = [
        name for name, one, other in zip(images, served, sent, strict=True) if not np.array_equal(one, other)
    ]
    assert different == []
    assert ours == theirs


async def test_jpegs_decoded_at_a_fraction_of_their_size_are_so_by_both(photographs, kinds, reached):
    jpegs = [data for data in photographs.values() if isinstance(data, bytes) and data[:2] == b"\xff\xd8"]
    async with serving(kinds, jpeg_decoding="reduced") as server:
        for model in KINDS:
            (theirs, served), (ours, sent) = await both(server, jpegs, model, reached)
            assert all(np.array_equal(one, other) for one, other in zip(served, sent, strict=True))
            assert ours == theirs
    async with serving(kinds) as server:
        (_, exact), _ = await both(server, jpegs, "imagenet", reached)
    async with serving(kinds, jpeg_decoding="reduced") as server:
        (_, reduced), _ = await both(server, jpegs, "imagenet", reached)

    assert len(jpegs) >= 10
    assert not all(np.array_equal(one, other) for one, other in zip(exact, reduced, strict=True))


async def test_every_kind_of_model_gets_the_same_from_both(kinds, small_images, reached):
    images = small_images
    different = []
    async with serving(kinds) as server:
        for model in KINDS:
            (theirs, served), (ours, sent) = await both(server, list(images.values()), model, reached)
            assert len(served) == len(sent) == len(images)
            different += [
                (model, name)
                for name, one, other, right, answer in zip(images, served, sent, theirs, ours, strict=True)
                if one.dtype != other.dtype or not np.array_equal(one, other) or right != answer
            ]

    assert different == []


async def test_lists_and_streams_of_both_clients_answer_alike(kinds, small_images):
    images = list(small_images.values())

    def blocking(address):
        with Client(address, preprocess="local") as client:
            listed = client.classify(images, model="grey")
            streamed = dict(client.classify_stream(enumerate(images), model="grey"))
        return listed, [streamed[number] for number in range(len(images))]

    async with serving(kinds) as server:
        async with AsyncClient(server.address) as client:
            expected = [result.predictions for result in await client.classify(images, model="grey")]
        answers = list(await asyncio.to_thread(blocking, server.address))
        async with AsyncClient(server.address, preprocess="local") as client:
            answers.append(await client.classify(iter(images), model="grey"))
            pairs = client.classify_stream(enumerate(images), model="grey")
            streamed = {number: result async for number, result in pairs}
            answers.append([streamed[number] for number in range(len(images))])
        requests = server.sample("vistazo_preprocess_failures_total", model="grey", version="1")

    assert requests == 0
    for results in answers:
        assert [result.predictions for result in results] == expected


def bad_images(folder):
    photo = file(cut(60, 44), "JPEG")
    (folder / "notes.jpg").write_text("only text")
    return [
        b"",
        b"no image",
        folder / "missing.jpg",
        folder / "notes.jpg",
        folder,
        photo[: len(photo) // 8],
        file(cut(50, 50))[:200],
        animation("GIF", cut(9, 9), cut(9, 8).resize((9, 9))),
        np.zeros((3, 3, 5), np.uint8),
        np.zeros((3, 3), np.float32),
        12,
        "data:image/png;base64,AAAA",
        np.zeros((1, 9_000_000, 1), np.uint8),
    ]


async def test_a_bad_image_fails_alone_in_the_servers_words(kinds, tmp_path):
    bad, good = bad_images(tmp_path), cut(50, 40)
    mixed = [image for each in bad for image in (each, good)]
    told = {}
    async with serving(kinds) as server:
        for preprocess in ("server", "local"):
            async with AsyncClient(server.address, preprocess=preprocess, timeout=60) as client:
                results = await client.classify(mixed, model="imagenet")
                alone = []
                for image in bad:
                    with pytest.raises(InvalidImageError) as failure:
                        await client.classify(image, model="imagenet")
                    alone.append((type(failure.value), failure.value.code, str(failure.value)))
                pairs = client.classify_stream(enumerate(bad), model="imagenet")
                streamed = {number: str(result.error) async for number, result in pairs}
            told[preprocess] = (
                [(type(result.error), str(result.error), result.predictions) for result in results],
                alone,
                streamed,
            )

    assert [error is type(None) for error, _, _ in told["local"][0]] == [False, True] * len(bad)
    assert told["local"] == told["server"]


async def test_a_swap_to_other_preprocessing_is_never_answered_with_the_old_pixels(tmp_path, reached):
    await asyncio.to_thread(write_kind, tmp_path, "model", KINDS["imagenet"])
    photo = await asyncio.to_thread(cut, 64, 50)
    images = [np.asarray(photo) // np.uint8(number + 1) for number in range(8)]
    async with (
        serving(tmp_path, model_control="explicit", load="*") as server,
        AsyncClient(server.address, preprocess="local", timeout=30) as client,
        AsyncClient(server.address, timeout=30) as plain_client,
    ):
        stop, wrong, versions = asyncio.Event(), [], set()
        right = {}

        async def ask(number):
            while not stop.is_set():
                results = await client.classify(images, model="model", top_k=5)
                for image, result in enumerate(results):
                    versions.add(result.version)
                    key = (result.version, image)
                    if key in right and right[key] != result.predictions:
                        wrong.append(key)

        async def stream():
            async def endless():
                while not stop.is_set():
                    for number, image in enumerate(images):
                        yield number, image

            pairs = client.classify_stream(endless(), model="model", top_k=5)
            async for number, result in pairs:
                result.raise_for_error()
                key = (result.version, number)
                versions.add(result.version)
                if key in right and right[key] != result.predictions:
                    wrong.append(key)

        async def learn(version):
            answers = await plain_client.classify(images, model="model", version=version, top_k=5)
            right.update({(version, number): answer.predictions for number, answer in enumerate(answers)})

        await learn("1")
        tasks = [asyncio.create_task(each) for each in (ask(0), ask(1), stream())]
        await until(lambda: "1" in versions)
        for version, kind in ((2, "fit-and-pad"), (3, "stretch")):
            await asyncio.to_thread(write_kind, tmp_path, "model", KINDS[kind], version=version)
            await server.server.repository.load("model")
            await learn(str(version))
            await until(lambda version=version: str(version) in versions)
        stop.set()
        await asyncio.gather(*tasks)

    assert versions == {"1", "2", "3"}
    assert wrong == []


async def test_a_version_whose_files_change_in_place_is_noticed(tmp_path):
    await asyncio.to_thread(write_kind, tmp_path, "model", KINDS["imagenet"])
    image = await asyncio.to_thread(cut, 64, 50)
    async with (
        serving(tmp_path, model_control="explicit", load="*") as server,
        AsyncClient(server.address, preprocess="local") as client,
        AsyncClient(server.address) as plain_client,
    ):
        before = await client.classify(image, model="model", version="1")
        shutil.rmtree(tmp_path / "model" / "1")
        await asyncio.to_thread(write_kind, tmp_path, "model", KINDS["fit-and-pad"])
        await server.server.repository.load("model")
        after = await client.classify(image, model="model", version="1")
        expected = await plain_client.classify(image, model="model", version="1")

    assert after.predictions == expected.predictions
    assert after.predictions != before.predictions


async def test_the_server_says_how_it_prepares_images(kinds):
    async with serving(kinds) as server:
        told = {model.name: model for model in (await server.stub.ListModels(pb.ListModelsRequest())).models}
        got = await server.stub.GetModel(pb.GetModelRequest(name="stretch"))

    assert got.preprocessing == told["stretch"].preprocessing
    stretch, fit = told["stretch"].preprocessing, told["fit-and-pad"].preprocessing
    assert (stretch.resize_mode, stretch.resize_height, stretch.resize_width) == (
        pb.Preprocessing.STRETCH,
        HEIGHT,
        WIDTH,
    )
    assert (fit.resize_height, fit.resize_width, list(fit.pad_color)) == (30, 28, [9, 99, 199])
    assert told["cover-rounding-down"].preprocessing.crop_rounding == pb.Preprocessing.DOWN
    assert list(told["grey"].preprocessing.background) == [7]
    assert told["no-resize"].preprocessing.resize_height == 0
    assert {model.preprocessing.jpeg_decoding for model in told.values()} == {pb.Preprocessing.EXACT}
    # Layout, order and normalising are the server's, so these two are prepared alike.
    assert told["imagenet"].preprocessing.id == told["floats-nchw-bgr"].preprocessing.id
    assert len({model.preprocessing.id for model in told.values()}) == len(KINDS) - 1


async def test_pixels_for_something_else_are_refused(kinds):
    async with serving(kinds) as server:
        with pytest.raises(Exception, match="prepared in another way") as failure:
            await server.classify(
                pb.Image(encoded=file(cut(50, 50))), model="grey", prepared_as="0123456789abcdef"
            )

    assert failure.value.code().name == "FAILED_PRECONDITION"
    assert dict(failure.value.trailing_metadata())["vistazo-error-reason"] == "prepared-otherwise"


async def test_an_unknown_model_is_told_as_ever(kinds):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with serving(kinds) as server, AsyncClient(server.address, preprocess="local") as client:
            with pytest.raises(ModelNotFoundError, match="nobody"):
                await client.classify(plain(1, 2, 3), model="nobody")
            pairs = client.classify_stream([(1, plain(1, 2, 3))], model="nobody")
            results = [result async for _, result in pairs]
            assert isinstance(results[0].error, ModelNotFoundError)
