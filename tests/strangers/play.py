"""The process of one player: `python -m strangers.play` with its arguments as one JSON object.

It prepares, prints `ready`, plays once a line comes in, and prints what came of it as JSON.
"""

import asyncio
import json
import logging
import os
import sys
from typing import Any

from strangers.attacks import ATTACKS
from strangers.field import Field
from strangers.good import good

NICE_OF_ATTACKERS = 19
"""Their own work is done elsewhere in the world: it is not what the good caller has to wait for."""


async def play(*, attack: str, kind: str, rate: float, deadline: float, **of_field: Any) -> dict[str, Any]:
    """Return the good caller's report, or how an attack's requests ended."""
    field = Field(**of_field, attacking=bool(attack))
    try:
        if not attack:
            return await good(field, kind, rate, deadline)
        os.nice(NICE_OF_ATTACKERS)
        await ATTACKS[attack].play(field)
        return dict(field.endings)
    finally:
        await field.close()


if __name__ == "__main__":
    # asyncio warns of each write to a connection that the server has ended: here that is the point.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    print(json.dumps(asyncio.run(play(**json.loads(sys.argv[1])))))  # noqa: T201
