"""Connections: those that stall, those that are no HTTP/2, those that do what HTTP/2 allows, too often."""

import asyncio
import random

from soak import strangers
from strangers.field import CONNECTED, Field, attack

NOTHING = "Nothing: no request of it is whole."


async def be(field: Field, kind, *, connections: int) -> None:
    """Hold so many connections of that kind, a new one for each that the server ends."""

    async def go_on(chance: random.Random) -> None:
        for _ in field.numbers():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", field.port)
                field.endings["connected"] += 1
                try:
                    await kind(reader, writer, field.token, chance)
                finally:
                    writer.close()
            except (OSError, EOFError, TimeoutError):
                pass
            await asyncio.sleep(0.01)

    await field.begin()
    await field.until_the_end(go_on(random.Random(number)) for number in range(connections))


@attack(beside="pixels", expected=CONNECTED, entitled=NOTHING)
async def silent_connections(field: Field) -> None:
    """Three hundred connections that say nothing."""
    await be(field, strangers.silent, connections=300)


@attack(beside="pixels", expected=CONNECTED, entitled=NOTHING)
async def stalled_handshakes(field: Field) -> None:
    """Connections that begin HTTP/2 a byte at a time."""
    await be(field, strangers.slow_preface, connections=100)


@attack(beside="pixels", expected=CONNECTED, entitled=NOTHING)
async def stalled_senders(field: Field) -> None:
    """Connections that announce a message and send a byte of it now and then: slowloris."""
    await be(field, strangers.slow_body, connections=100)


@attack(beside="pixels", expected=CONNECTED, entitled=NOTHING)
async def deaf_connections(field: Field) -> None:
    """Connections that open HTTP/2 properly and then answer nothing."""
    await be(field, strangers.deaf, connections=100)


@attack(beside="pixels", expected=CONNECTED, entitled=NOTHING)
async def garbage_on_connections(field: Field) -> None:
    """Bytes that are no HTTP/2, on a new connection each time."""
    await be(field, strangers.garbage, connections=10)


@attack(beside="pixels", expected=CONNECTED, entitled=NOTHING)
async def pings_whose_answers_are_not_read(field: Field) -> None:
    """A thousand pings on each connection."""
    await be(field, strangers.unread_answers, connections=10)


@attack(beside="pixels", expected=CONNECTED, entitled=NOTHING)
async def connections_that_are_reset(field: Field) -> None:
    """Calls whose connection ends with a reset."""
    await be(field, strangers.reset, connections=20)


@attack(beside="pixels", expected=CONNECTED, entitled=NOTHING)
async def rapid_resets(field: Field) -> None:
    """A hundred calls on each connection, taken back at once (CVE-2023-44487)."""
    await be(field, strangers.many_resets, connections=10)
