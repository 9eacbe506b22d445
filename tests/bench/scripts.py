"""What a scripted server may do."""

import asyncio


def after(seconds):
    """Answer with the request's number after some seconds."""

    async def behaviour(number, context):
        await asyncio.sleep(seconds)
        return str(number).encode()

    return behaviour


def aborting(code, *, pushback_ms):
    """Refuse everything."""

    async def behaviour(number, context):
        await context.abort(code, "full", (("grpc-retry-pushback-ms", str(pushback_ms)),))

    return behaviour
