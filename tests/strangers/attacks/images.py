"""Images: broken ones, small files that are huge pictures, large ones in number."""

import functools
import itertools

import numpy as np

from strangers.field import LOAD, Field, attack
from support.images import file, png_claiming
from support.serving import encoded, raw
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb

INVALID = frozenset({"INVALID_ARGUMENT"})
MEGAPIXEL_SIDES = {16: (4000, 4000), 49: (7000, 7000)}


def large_png(megapixels: int) -> bytes:
    """Return a file of so many megapixels in some tens of kilobytes."""
    height, width = MEGAPIXEL_SIDES[megapixels]
    return file(plain(200, 10, 30, height=height, width=width), compress_level=1)


def classifying(field: Field, images, *, callers: int):
    """Return callers, each on a connection of its own, that send the images one by one, in turn."""
    turns = itertools.cycle(images)

    def caller():
        stub = field.classification()
        return lambda: field.classify(stub, next(turns))

    return [caller() for _ in range(callers)]


@attack(beside="photo", expected=INVALID, entitled="A look at each file's first bytes.")
async def broken_images(field: Field) -> None:
    """Files that end too early, are damaged, or are none at all; pixels that are not as many as they say."""
    data = {
        kind: file(plain(200, 10, 30, height=300, width=400), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")
    }
    images = [encoded(whole[: len(whole) * part // 8]) for whole in data.values() for part in range(6)]
    images += [encoded(field.chance.randbytes(size)) for size in (1, 10, 1000, 100_000)]
    images += [encoded(b"<svg/>"), encoded(b"\x89PNG\r\n\x1a\n"), encoded(b"\xff\xd8\xff"), pb.Image()]
    for height, width in ((2**31, 2), (2**32 - 1, 2**32 - 1), (0, 0), (0, 4)):
        pixels = pb.RawPixels(data=b"abc", height=height, width=width, channels=3)
        images.append(pb.Image(raw=pixels))
    callers = classifying(field, images, callers=4)
    await field.begin()
    await field.crowd(callers)


@attack(beside="photo", expected=INVALID, entitled="A look at each file's header.")
async def pixel_bombs(field: Field) -> None:
    """Files of a hundred bytes that claim to be gigapixels."""
    sides = [(1 << 30, 1 << 30), (100_000, 100_000), (7100, 7100), (1, 60_000_000)]
    callers = classifying(field, [encoded(png_claiming(*side)) for side in sides], callers=4)
    await field.begin()
    await field.crowd(callers)


@attack(beside="photo", expected=LOAD, entitled="One image at a time on one of the threads that decode.")
async def pixel_bombs_just_below_the_limit(field: Field) -> None:
    """Files of 140 kB that are 49 megapixels, one after the other."""
    callers = classifying(field, [encoded(large_png(49))], callers=2)
    await field.begin()
    await field.crowd(callers)


@attack(
    beside="photo", expected=LOAD, entitled="One of its images at a time, in turn with others'.", deadline=2.0
)
async def sixty_large_images_in_one_request(field: Field) -> None:
    """60 PNGs of 16 megapixels in one request without a deadline."""
    stub = field.classification()
    images = [encoded(large_png(16))] * 60
    await field.begin()
    await field.crowd([functools.partial(field.classify, stub, *images, deadline=None)])


@attack(
    beside="photo", expected=LOAD, entitled="One of its images at a time, in turn with others'.", deadline=2.0
)
async def many_requests_of_many_images(field: Field) -> None:
    """Requests of a hundred photographs each, without deadlines."""
    pixels = np.random.default_rng(0).integers(0, 256, (75, 100, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    images = [encoded(file(pixels, "JPEG"))] * 100
    stubs = [field.classification() for _ in range(4)]
    await field.begin()
    await field.crowd([functools.partial(field.classify, stub, *images, deadline=None) for stub in stubs])


@attack(beside="photo", expected=LOAD, entitled="One of its images at a time, in turn with others'.")
async def large_pixels_to_be_resized(field: Field) -> None:
    """Raw pixels, 20 MB an image, which need no decoding but resizing."""
    image = raw(plain(10, 220, 20, height=2000, width=3400))
    callers = classifying(field, [image], callers=2)
    await field.begin()
    await field.crowd(callers)
