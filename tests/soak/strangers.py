"""Clients that speak TCP or half of HTTP/2: slow ones, half-open connections, and those that hang up."""

import asyncio
import random
import socket
import struct
from collections import Counter

# RFC 9113: the preface, and frames as (length, kind, flags, stream).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_HEADERS, ACK = 4, 1
METHOD = "/vistazo.v1.ClassificationService/Classify"


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(token: str, method: str = METHOD) -> bytes:
    """Return the header block of a call of `method`: literals without indexing (RFC 7541, section 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "soak",
        "te": "trailers",
        "content-type": "application/grpc",
        "authorization": f"Bearer {token}",
    }
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


async def stranger(port: int, token: str, chance: random.Random, seen: Counter[str]) -> None:
    """Be one of them until the server or this client ends the connection."""
    kind = chance.choice(list(KINDS))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await KINDS[kind](reader, writer, token, chance)
        seen[f"{kind}: hung up"] += 1
    except (ConnectionError, EOFError):
        seen[f"{kind}: ended by the server"] += 1
    finally:
        writer.close()


async def silent(reader, writer, token, chance) -> None:
    """Connect and say nothing."""
    await until_the_end(reader)


async def slow_preface(reader, writer, token, chance) -> None:
    """Say the first words of HTTP/2, one byte at a time, and never the last."""
    for byte in PREFACE[:-1]:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(chance.uniform(0.5, 3))
    await until_the_end(reader)


async def deaf(reader, writer, token, chance) -> None:
    """Open an HTTP/2 connection properly, and then answer nothing, pings included."""
    writer.write(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=ACK))
    await until_the_end(reader)


async def slow_body(reader, writer, token, chance) -> None:
    """Call, announce a message and send a byte of it now and then, but answer every ping: slowloris."""
    writer.write(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=ACK))
    writer.write(frame(HEADERS, headers(token), flags=END_HEADERS, stream=1))
    writer.write(frame(DATA, struct.pack(">BI", 0, 1 << 20), stream=1))
    answering = asyncio.create_task(answer_pings(reader, writer))
    try:
        while not answering.done():
            writer.write(frame(DATA, b"\0", stream=1))
            await writer.drain()
            await asyncio.sleep(chance.uniform(0.5, 2))
        await answering
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def unread_answers(reader, writer, token, chance) -> None:
    """Ask for a thousand pings' answers and read none of them, then hang up."""
    writer.write(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=ACK))
    for _ in range(1000):
        writer.write(frame(PING, b"12345678"))
    await asyncio.wait_for(writer.drain(), 10)
    await asyncio.sleep(chance.uniform(0, 5))


async def garbage(reader, writer, token, chance) -> None:
    """Say something that is no HTTP/2."""
    writer.write(chance.choice((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\0", PREFACE)))
    writer.write(chance.randbytes(500))
    await until_the_end(reader)


async def reset(reader, writer, token, chance) -> None:
    """Begin a call and hang up with a reset, as a machine that crashed does."""
    writer.write(PREFACE + frame(SETTINGS) + frame(HEADERS, headers(token), flags=END_HEADERS, stream=1))
    await writer.drain()
    await asyncio.sleep(chance.uniform(0, 0.5))
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def many_resets(reader, writer, token, chance) -> None:
    """Begin calls and take each back at once (rapid reset, CVE-2023-44487)."""
    writer.write(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=ACK))
    for number in range(1, 200, 2):
        writer.write(frame(HEADERS, headers(token), flags=END_HEADERS, stream=number))
        writer.write(frame(3, struct.pack(">I", 8), stream=number))  # RST_STREAM, CANCEL
    await writer.drain()
    await asyncio.sleep(chance.uniform(0, 1))


KINDS = {
    play.__name__: play
    for play in (silent, slow_preface, deaf, slow_body, unread_answers, garbage, reset, many_resets)
}


async def until_the_end(reader: asyncio.StreamReader) -> None:
    """Read until the server ends the connection. Raises EOFError or ConnectionError then."""
    while await reader.read(1 << 16):
        pass
    raise EOFError


async def answer_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == PING and not head[4] & ACK:
            writer.write(frame(PING, payload, flags=ACK))
