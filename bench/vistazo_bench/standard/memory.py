"""Line 7 of the standard set: the server's resident memory, loaded, and over many mixed requests."""

import time
from typing import Final

import numpy as np

from vistazo_bench.measuring.figures import Figure
from vistazo_bench.measuring.load import Target
from vistazo_bench.measuring.machine import resident_bytes
from vistazo_bench.measuring.payload import make_payload
from vistazo_bench.measuring.rig import Rig
from vistazo_client.cli.serving import RunningServer
from vistazo_client.results import ModelInfo
from vistazo_proto import classification_pb2 as pb

MB: Final = 1e6

WEIGHTS_FACTOR: Final = 1.3
ALLOWANCE_MB: Final = 400.0
FLAT_TARGET_PERCENT: Final = 2.0

CALLERS: Final = 16
# Resident memory is read after each; the run ends between two when its time is over.
CHUNK_REQUESTS: Final = 100

# Requests by network: the slow ones seldom, or they would take the whole time. Part of each in JPEG.
MIX: Final = {"alexnet": 0.78, "resnet18": 0.19, "vgg16": 0.01}
JPEG_SHARE: Final = 0.3
# The rest are broken images: errors must not leak either.
MIXED_REQUESTS: Final = 400


def mixed_requests(models: dict[str, ModelInfo], *, seed: int) -> tuple[bytes, ...]:
    """Return serialised requests in random order: MIX, tensors and JPEG files, and some broken images."""
    generator = np.random.default_rng(seed)
    pool: list[bytes] = []
    for name, share in MIX.items():
        tensors = make_payload(models[name], kind="tensor").requests
        files = make_payload(models[name], kind="jpeg").requests
        for at in range(round(share * MIXED_REQUESTS)):
            kind = files if generator.random() < JPEG_SHARE else tensors
            pool.append(kind[at % len(kind)])
    broken = pb.ClassifyRequest(model="resnet18", images=[pb.Image(encoded=b"\xff\xd8 no JPEG")])
    pool += [broken.SerializeToString()] * (MIXED_REQUESTS - len(pool))
    return tuple(pool[at] for at in generator.permutation(len(pool)))


def memory_figures(
    rig: Rig,
    server: RunningServer,
    models: dict[str, ModelInfo],
    *,
    requests: int,
    budget_seconds: float,
    weights_bytes: int,
    seed: int,
) -> list[Figure]:
    """Return the largest resident memory after loading, and its growth over the second half of the load."""
    if server.pid is None:
        return [Figure("resident memory", None, "MB", 7, note="not a server that was started here")]
    pool = mixed_requests(models, seed=seed)
    limit_mb = weights_bytes / MB * WEIGHTS_FACTOR + ALLOWANCE_MB
    readings = [resident_bytes(server.pid) / MB]
    sent = 0
    statuses: dict[str, int] = {}
    started = time.monotonic()
    while sent < requests and (sent == 0 or time.monotonic() - started < budget_seconds):
        rig.say(f"mixed requests: {sent:,} of {requests:,}, {readings[-1]:,.0f} MB resident")
        # The pool from where the last chunk ended.
        turned = pool[sent % len(pool) :] + pool[: sent % len(pool)]
        count = min(CHUNK_REQUESTS, requests - sent)
        errors = rig.count(Target(server.address, turned), concurrency=CALLERS, requests=count)
        for name, number in errors.items():
            statuses[name] = statuses.get(name, 0) + number
        sent += count
        readings.append(resident_bytes(server.pid) / MB)
    note = f"{sent:,} requests; {readings[0]:,.0f} MB before, {readings[-1]:,.0f} MB after"
    if sent < requests:
        note += f"; {requests:,} were wanted, the time was over"
    detail: dict[str, object] = {
        "requests": sent,
        "statuses": statuses,
        "resident_mb": readings,
        "requests_per_reading": CHUNK_REQUESTS,
        "weights_mb": weights_bytes / MB,
    }
    return [
        Figure(
            "resident memory, three networks and mixed requests, largest",
            max(readings),
            "MB",
            7,
            target=limit_mb,
            better="lower",
            note=note,
            detail=detail,
        ),
        Figure(
            "resident memory: growth over the second half",
            second_half_growth(readings) * 100,
            "%",
            7,
            target=FLAT_TARGET_PERCENT,
            better="lower",
            note="by the line fitted through its readings",
        ),
    ]


def second_half_growth(readings: list[float]) -> float:
    """Return the growth from the middle to the end as a share, by least squares; 0 for fewer than 3 there."""
    half = np.array(readings[len(readings) // 2 :])
    if len(half) < 3:
        return 0.0
    slope, start = np.polyfit(np.arange(len(half)), half, 1)
    return float(slope * (len(half) - 1) / start)
