"""Every kind of image that a stranger may send: the right answer, or one clear line, never a crash."""

import asyncio
import random
import re
import struct
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image

from support import quadrants
from support.images import (
    AS_STORED,
    animation,
    file,
    interlaced_png,
    picture,
    png_chunk,
    png_claiming,
    turned,
)
from support.serving import encoded, labels, probabilities, pushback, raw, serving, softmax, until
from support.tiny import LABELS, plain, tiny_manifest, tiny_model, write_model
from vistazo_proto import classification_pb2 as pb

# As `vistazo serve` has it: what Pillow finds odd about a stranger's file is no error.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

COLOUR = (120, 110, 100)
PHOTO = plain(*COLOUR, height=40, width=56)


def palette(colour, **options) -> bytes:
    image = Image.new("P", (56, 40), 1)
    image.putpalette([0, 0, 255, *colour])
    return file(image, **options)


def transparent(mode: str, colour, *, alpha: int) -> bytes:
    return file(Image.new(mode, (56, 40), (*colour, alpha)))


def phone_photo() -> bytes:
    """A JPEG with a second picture behind the first, as many phones store a preview or a depth map."""
    return file(PHOTO, "MPO", save_all=True, append_images=[picture(plain(0, 0, 255, height=40, width=56))])


def with_odd_exif(tag: int, kind: int, data: bytes, *, orientation: int = 6) -> bytes:
    """A JPEG whose EXIF block has a rotation and one more entry, of a kind that the tag does not have."""
    entries = [(0x0112, 3, struct.pack(">HH", orientation, 0)), (tag, kind, data)]
    block = b"MM\0*" + struct.pack(">IH", 8, len(entries))
    block += b"".join(struct.pack(">HHI", tag, kind, 1) + value for tag, kind, value in sorted(entries))
    return file(PHOTO, "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0" + block + bytes(32))


WHITE = (255, 255, 255)


def on_white(colour, alpha: int):
    return tuple((value * alpha + 255 * (255 - alpha)) / 255 for value in colour)


def with_chunk(name: bytes, data: bytes, *, damaged: bool = False) -> bytes:
    """A PNG with one chunk more, in front of its pixels."""
    png, chunk = file(PHOTO), png_chunk(name, data)
    return png[:33] + (chunk[:-1] + bytes([chunk[-1] ^ 1]) if damaged else chunk) + png[33:]


def bomb() -> bytes:
    """Three megabytes that unpack to three gigabytes."""
    packer = zlib.compressobj(9)
    megabyte = packer.compress(bytes(10 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = zlib.compressobj(9)
    again.compress(bytes(1))
    return megabyte + (again.compress(bytes(10 << 20)) + again.flush(zlib.Z_FULL_FLUSH)) * 300


BOMB = bomb()

ANSWERED = {
    "JPEG": (lambda: file(PHOTO, "JPEG", quality=100), COLOUR),
    "progressive JPEG": (lambda: file(PHOTO, "JPEG", quality=100, progressive=True), COLOUR),
    "greyscale JPEG": (lambda: file(Image.new("L", (56, 40), 90), "JPEG", quality=100), (90, 90, 90)),
    "CMYK JPEG": (
        lambda: file(Image.new("CMYK", (56, 40), (135, 145, 155, 0)), "JPEG", quality=100),
        COLOUR,
    ),
    "JPEG with a second picture, as phones store them": (phone_photo, COLOUR),
    "JPEG with EXIF that is no EXIF": (
        lambda: file(PHOTO, "JPEG", quality=100, exif=b"Exif\0\0no EXIF at all"),
        COLOUR,
    ),
    "JPEG with a fraction for the camera's name in its EXIF": (
        lambda: with_odd_exif(0x010F, 5, struct.pack(">I", 8)),
        COLOUR,
    ),
    "JPEG with a text for a number in its EXIF": (
        lambda: with_odd_exif(0x0100, 2, b"abc\0"),
        COLOUR,
    ),
    "JPEG with an orientation that does not exist": (
        lambda: with_odd_exif(0x0100, 3, b"\0\1\0\0", orientation=9),
        COLOUR,
    ),
    "PNG": (lambda: file(PHOTO), COLOUR),
    "PNG with EXIF that is no EXIF": (lambda: file(PHOTO, exif=b"no EXIF at all"), COLOUR),
    "WebP with EXIF that is no EXIF": (
        lambda: file(PHOTO, "WEBP", lossless=True, exif=b"no EXIF at all"),
        COLOUR,
    ),
    "interlaced PNG": (lambda: interlaced_png(PHOTO), COLOUR),
    "greyscale PNG": (lambda: file(Image.new("L", (56, 40), 90)), (90, 90, 90)),
    "black and white PNG": (lambda: file(Image.new("1", (56, 40), 1)), (255, 255, 255)),
    "greyscale PNG with alpha": (lambda: transparent("LA", (90,), alpha=7), (250, 250, 250)),
    "colour PNG with alpha": (lambda: transparent("RGBA", COLOUR, alpha=0), WHITE),
    "colour PNG whose alpha lets nothing through": (lambda: transparent("RGBA", COLOUR, alpha=255), COLOUR),
    "16-bit grey PNG": (
        lambda: file(np.full((40, 56), 0x6400, dtype=np.uint16)),
        (100, 100, 100),
    ),
    "palette PNG": (lambda: palette(COLOUR), COLOUR),
    "palette PNG with a transparent colour": (lambda: palette(COLOUR, transparency=1), WHITE),
    "palette PNG with an alpha for each colour": (
        lambda: palette(COLOUR, transparency=b"\x80\x33"),
        on_white(COLOUR, 0x33),
    ),
    "PNG with a transparent colour": (lambda: file(PHOTO, transparency=COLOUR), WHITE),
    "PNG with a transparent grey": (lambda: file(Image.new("L", (56, 40), 90), transparency=90), WHITE),
    "WebP": (lambda: file(PHOTO, "WEBP", lossless=True), COLOUR),
    "WebP with alpha": (
        lambda: file(Image.new("RGBA", (56, 40), (*COLOUR, 200)), "WEBP", lossless=True, exact=True),
        on_white(COLOUR, 200),
    ),
    "BMP": (lambda: file(PHOTO, "BMP"), COLOUR),
    "palette BMP": (lambda: palette(COLOUR, kind="BMP"), COLOUR),
    "one pixel": (lambda: file(plain(*COLOUR, height=1, width=1)), COLOUR),
    "PNG with something after its end": (lambda: file(PHOTO) + b"<script>", COLOUR),
    "JPEG with something after its end": (
        lambda: file(PHOTO, "JPEG", quality=100) + b"\xff\xd8\xff<script>",
        COLOUR,
    ),
    "PNG with a profile of 3 MB": (
        lambda: with_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000))),
        COLOUR,
    ),
    "PNG with a text of 3 MB": (
        lambda: with_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        COLOUR,
    ),
    "PNG with a text of 3 GB": (lambda: with_chunk(b"zTXt", b"a\0\0" + BOMB), COLOUR),
    "PNG with a damaged date": (lambda: with_chunk(b"tIME", bytes(7), damaged=True), COLOUR),
    "PNG with damaged EXIF": (lambda: with_chunk(b"eXIf", b"MM", damaged=True), COLOUR),
}

NO_IMAGE = r"expected a JPEG, PNG, WebP or BMP file, got \d+ bytes of .+; .+"


def of(kind: str) -> str:
    return rf"expected a JPEG, PNG, WebP or BMP file, got \d+ bytes of {kind}; .+"


BROKEN = r"the image cannot be decoded: .+"
FRAMES = (picture(PHOTO), picture(255 - PHOTO))

REFUSED = {
    "text named .jpg": (lambda: b"This is a text.\n" * 9, of("text")),
    "nothing": (lambda: b"", "expected an encoded image, got 0 bytes: .*empty.*"),
    "zeros": (lambda: bytes(5000), of("zeros")),
    "half a JPEG": (lambda: file(noise(), "JPEG")[:3000], BROKEN),
    "the first bytes of a JPEG": (lambda: file(noise(), "JPEG")[:20], f"{NO_IMAGE}|{BROKEN}"),
    "half a PNG": (lambda: file(noise())[:3000], BROKEN),
    "half a WebP": (lambda: file(noise(), "WEBP")[:1000], f"{NO_IMAGE}|{BROKEN}"),
    "half a BMP": (lambda: file(noise(), "BMP")[:3000], BROKEN),
    "PNG with a wrong checksum": (lambda: flipped(file(noise()), 60), f"{NO_IMAGE}|{BROKEN}"),
    "PNG that claims gigapixels": (
        lambda: png_claiming(60_000, 60_000),
        r"expected at most 65 megapixels, got 60000×60000 \(3600\.0 megapixels\)",
    ),
    "GIF": (lambda: file(picture(PHOTO), "GIF"), of("a GIF image")),
    "animated GIF": (lambda: animation("GIF", *FRAMES), of("an animated GIF")),
    "animated WebP": (
        lambda: animation("WEBP", *FRAMES),
        "expected a still image, got an animation of 2 frames",
    ),
    "animated PNG": (
        lambda: animation("PNG", *FRAMES),
        "expected a still image, got an animation of 2 frames",
    ),
    "TIFF": (lambda: file(picture(PHOTO), "TIFF"), of("a TIFF image, or .*")),
    "PDF": (lambda: file(picture(PHOTO), "PDF"), of("a PDF document")),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", of("an SVG drawing")),
}

CHANNELS = "raw.channels: expected 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha)"

REFUSED_RAW = {
    "too few bytes": (
        pb.RawPixels(data=bytes(47), height=4, width=4, channels=3),
        "raw.data: expected 48 bytes for 4×4×3, got 47",
    ),
    "too many bytes": (
        pb.RawPixels(data=bytes(49), height=4, width=4, channels=3),
        "raw.data: expected 48 bytes for 4×4×3, got 49",
    ),
    "no bytes": (
        pb.RawPixels(height=4, width=4, channels=3),
        "raw.data: expected 48 bytes for 4×4×3, got 0",
    ),
    "no height": (
        pb.RawPixels(data=bytes(48), width=4, channels=3),
        "raw: expected a height and width of at least 1, got 0×4",
    ),
    "no width": (
        pb.RawPixels(data=bytes(48), height=4, channels=3),
        "raw: expected a height and width of at least 1, got 4×0",
    ),
    "no channels": (pb.RawPixels(data=bytes(16), height=4, width=4), f"{CHANNELS}, got 0"),
    "five channels": (
        pb.RawPixels(data=bytes(80), height=4, width=4, channels=5),
        f"{CHANNELS}, got 5",
    ),
    "sizes whose product is 0 in 32 bits": (
        pb.RawPixels(data=b"", height=2**31, width=2, channels=1),
        "raw.data: expected 4294967296 bytes for 2147483648×2×1, got 0",
    ),
}


def noise() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (80, 80, 3), dtype=np.uint8)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


async def refusal(server, image: pb.Image) -> str:
    """The one line with which a request of this image alone is refused, without the image's number."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await server.classify(image)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT, failed.value.details()
    message = failed.value.details()
    assert message.isprintable()
    number, _, reason = message.partition(": ")
    assert number == "images[0]"
    return reason


@pytest.mark.parametrize("name", ANSWERED)
async def test_it_is_answered_by_its_colours(models, name):
    make, colour = ANSWERED[name]
    async with serving(models) as server:
        response = await server.classify(encoded(make()))

    expected = softmax(*(value / 10 for value in colour))
    # JPEG and CMYK round each channel by a step or two.
    assert probabilities(response.results[0]) == pytest.approx(
        dict(zip(LABELS, expected, strict=True)), abs=0.05
    )


@pytest.mark.parametrize("name", REFUSED)
async def test_it_is_refused_in_one_clear_line(models, name):
    make, message = REFUSED[name]
    async with serving(models) as server:
        reason = await refusal(server, encoded(make()))

    assert re.fullmatch(message, reason), reason


@pytest.mark.parametrize("name", REFUSED_RAW)
async def test_raw_pixels_are_refused_when_their_size_is_not_what_they_say(models, name):
    pixels, message = REFUSED_RAW[name]
    async with serving(models) as server:
        assert await refusal(server, pb.Image(raw=pixels)) == message


async def test_after_all_of_them_the_server_still_serves(models):
    images = [
        *(encoded(make()) for make, _ in REFUSED.values()),
        *(pb.Image(raw=pixels) for pixels, _ in REFUSED_RAW.values()),
        *(encoded(make()) for make, _ in ANSWERED.values()),
    ]
    async with serving(models) as server:
        for image in images[: len(REFUSED) + len(REFUSED_RAW)]:
            await refusal(server, image)
        together = await server.classify(*images)
        alone = await server.classify(raw(plain(200, 10, 10)))

        assert server.outcomes() == {"ok": 2, "invalid": len(REFUSED) + len(REFUSED_RAW)}
    outcomes = [result.WhichOneof("outcome") for result in together.results]
    assert outcomes == ["error"] * (len(REFUSED) + len(REFUSED_RAW)) + ["predictions"] * len(ANSWERED)
    assert labels(alone.results[0])[0] == "red"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
async def test_files_with_random_bytes_wrong_are_answered_or_refused_and_nothing_else(models, kind):
    chance = random.Random(f"seed {kind}")
    good = {
        "JPEG": turned(noise()[:20, :30], 6, "JPEG", icc_profile=b"profile" * 9, comment=b"hello"),
        "PNG": turned(noise()[:20, :30], 6),
        "WEBP": turned(noise()[:20, :30], 6, "WEBP"),
        "BMP": file(noise()[:20, :30], "BMP"),
    }[kind]

    def damaged() -> pb.Image:
        data = bytearray(good)
        for _ in range(chance.choice((1, 2, 5))):
            # The headers, where the decoders decide, more often than the pixels.
            data[chance.randrange(chance.choice((60, 250, len(data))))] = chance.randrange(256)
        return encoded(bytes(data[: chance.choice((len(data), chance.randrange(1, len(data))))]))

    async with serving(models, max_image_megapixels=1) as server:
        for _ in range(10):
            response = await server.classify(*(damaged() for _ in range(200)))

            assert {result.error.code for result in response.results} <= {0, 3}
            assert all(result.error.message.isprintable() for result in response.results)


async def test_how_many_pixels_are_decoded_is_a_setting(models):
    small = encoded(file(plain(200, 10, 10, height=400, width=500)))
    large = encoded(file(plain(200, 10, 10, height=401, width=500)))
    async with serving(models, max_image_megapixels=0.2) as server:
        assert labels((await server.classify(small)).results[0])[0] == "red"
        assert await refusal(server, large) == (
            "expected at most 0.2 megapixels, got 500×401 (0.2 megapixels)"
        )
    async with serving(models, max_image_megapixels=0.3) as server:
        assert labels((await server.classify(large)).results[0])[0] == "red"


async def test_raw_pixels_are_under_the_same_limit(models):
    async with serving(models, max_image_megapixels=0.2) as server:
        reason = await refusal(server, raw(plain(1, 2, 3, height=401, width=500)))

    assert reason == "expected at most 0.2 megapixels, got 500×401 (0.2 megapixels)"


@pytest.mark.parametrize(("height", "width"), [(1, 1_000_000), (1_000_000, 1)])
async def test_a_strip_that_would_grow_beyond_the_limit_is_refused(tmp_path, height, width):
    # Resized to a shorter edge of 256 pixels, a million pixels become 65 thousand million.
    model = tiny_model()
    manifest = tiny_manifest("tiny", model.SerializeToString())
    manifest.preprocessing.resize_size = 256
    write_model(tmp_path, model=model, manifest=manifest)
    grown = "256000000×256" if width > height else "256×256000000"
    async with serving(tmp_path) as server:
        reason = await refusal(server, encoded(file(np.zeros((height, width), dtype=np.uint8))))
        assert reason == f"expected at most 65 megapixels, got after resizing, {grown} (65536.0 megapixels)"
        assert labels((await server.classify(encoded(file(PHOTO)))).results[0])[0] == "red"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96), (96, 48)])
async def test_all_eight_exif_orientations_are_classified_upright(tmp_path, kind, height, width):
    model = quadrants.quadrant_model()
    manifest = tiny_manifest("quadrants", model.SerializeToString(), labels=quadrants.LABELS)
    # Stretched, so that all of an image that is not square counts.
    manifest.preprocessing.resize_mode = manifest.preprocessing.STRETCH
    write_model(tmp_path, "quadrants", model=model, manifest=manifest)
    upright = quadrants.corner(height=height, width=width)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    async with serving(tmp_path) as server:
        expected = await server.classify(encoded(file(upright, kind, **options)))
        response = await server.classify(
            *(encoded(turned(upright, orientation, kind, **options)) for orientation in AS_STORED)
        )

    assert labels(expected.results[0])[0] == "top left"
    for result in response.results:
        # A JPEG's blocks are turned with it, so that its pixels are off by a step here and there.
        assert probabilities(result) == pytest.approx(
            probabilities(expected.results[0]), abs=0 if kind != "JPEG" else 0.01
        )


async def test_an_untagged_image_is_classified_as_it_stands(tmp_path):
    model = quadrants.quadrant_model()
    write_model(
        tmp_path,
        "quadrants",
        model=model,
        manifest=tiny_manifest("quadrants", model.SerializeToString(), labels=quadrants.LABELS),
    )
    upside_down = np.ascontiguousarray(quadrants.corner(height=40, width=40)[::-1])
    async with serving(tmp_path) as server:
        response = await server.classify(encoded(file(upside_down)))

    assert labels(response.results[0])[0] == "bottom left"


@pytest.fixture(scope="module")
def huge() -> pb.Image:
    """A PNG of some kilobytes that takes a thread some 10 ms or more to decode."""
    return encoded(file(Image.new("RGB", (1000, 2000), COLOUR)))


@pytest.fixture(scope="module")
def enormous() -> pb.Image:
    """A PNG that takes ten times as long as a huge one."""
    return encoded(file(Image.new("RGB", (5000, 4000), COLOUR)))


def pool_of(server):
    return server.server.repository.lease("tiny").loaded.classifier._images._pool


async def test_huge_images_of_one_caller_keep_no_other_waiting(models, huge):
    async with serving(models, preprocess_threads=1) as server:
        pool = pool_of(server)
        flood = asyncio.create_task(server.classify(*[huge] * 60))
        await until(lambda: pool.pending > 50)
        for _ in range(6):
            response = await server.classify(encoded(file(PHOTO, "JPEG")))
            assert labels(response.results[0])
        # One of a caller who is as fair as all others, among the huge ones.
        await server.classify(huge)
        left = pool.pending

        assert left > 20
        assert len((await flood).results) == 60


async def test_a_request_of_a_stream_ends_at_its_own_deadline_while_huge_images_are_decoded(models, huge):
    async with serving(models, preprocess_threads=1) as server:
        pool = pool_of(server)
        flood = asyncio.create_task(server.classify(*[huge] * 60))
        await until(lambda: pool.pending > 50)
        # More than can be decoded in time, whoever else is there.
        late = pb.ClassifyStreamRequest(
            id="late", timeout_ms=100, request=pb.ClassifyRequest(images=[huge] * 100)
        )
        (answer,) = [answer async for answer in server.stub.ClassifyStream(iter([late]))]

        assert answer.error.code in (
            grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
            grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
        ), answer
        assert pool.pending > 20
        # What it had is never decoded.
        assert pool.pending < 70
        await flood


async def test_huge_images_that_cannot_be_decoded_by_the_deadline_are_refused_before_it(
    models, huge, enormous
):
    async with serving(models, preprocess_threads=1) as server:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.classify(*[enormous] * 250, deadline=5)

        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, refused.value.details()
        assert pushback(refused.value) > 0
        assert "large images are predicted to be decoded in" in refused.value.details()
        await until(lambda: pool_of(server).pending == 0)
        assert labels((await server.classify(huge)).results[0])
        assert server.outcomes() == {"ok": 1, "rejected": 1}


async def test_how_many_images_wait_to_be_decoded_is_a_metric(models, huge):
    async with serving(models, preprocess_threads=1) as server:
        flood = asyncio.create_task(server.classify(*[huge] * 20))
        await until(lambda: server.sample("vistazo_preprocess_pending_images") > 10)
        await flood
        assert server.sample("vistazo_preprocess_pending_images") == 0
