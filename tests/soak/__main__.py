"""Run the soak and say what was seen; exit status 0 only when all of it was as it should be."""

import asyncio
import json
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import click
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from soak.callers import CALLERS, Caller, Tally, Target
from soak.strangers import stranger
from soak.vitals import Vitals, growth, look, middle
from support.process import ServerProcess, server_process
from support.serving import open_channel
from support.tiny import write_model

STRANGERS = 24
MESSAGE_MB = 4
# Of connections: short, so that many are drained in a soak, and slow callers cut.
AGE_SECONDS = 15
AGE_GRACE_SECONDS = 10
TOKEN = "soak-token-0123456789"
LINE_SECONDS = 30.0


class Soak:
    """One run: everybody at once, for so many seconds."""

    def __init__(self, server: ServerProcess, seconds: float, seed: int, only: Collection[str]) -> None:
        self.tally = Tally()
        self.seen: Counter[str] = Counter()
        self.looks: list[Vitals] = []
        self.unhealthy: list[str] = []
        self._server = server
        self._seconds = seconds
        self._seed = seed
        self._only = only
        self._target = Target(server.port, TOKEN, MESSAGE_MB << 20)
        self._ended = asyncio.Event()

    async def run(self) -> None:
        began = time.monotonic()
        asyncio.get_running_loop().call_later(self._seconds, self._ended.set)
        roles = [caller for caller, count in CALLERS.items() for _ in range(count) if self._plays(caller)]
        callers = [
            asyncio.create_task(self._call(caller, random.Random(f"{self._seed}-{number}")))
            for number, caller in enumerate(roles)
        ]
        strangers = [
            asyncio.create_task(self._be_strange(random.Random(f"{self._seed}-stranger-{number}")))
            for number in range(STRANGERS if self._plays(stranger) else 0)
        ]
        async with open_channel(self._server.port) as channel:
            await self._watch(channel, began)
        # What was asked is answered; who never comes to an end is sent away.
        await asyncio.gather(*callers)
        for task in strangers:
            task.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)

    def _plays(self, role: Callable[..., object]) -> bool:
        return not self._only or role.__name__ in self._only

    async def _call(self, caller: Caller, chance: random.Random) -> None:
        while not self._ended.is_set():
            await caller(self._target, self.tally, chance)

    async def _be_strange(self, chance: random.Random) -> None:
        while not self._ended.is_set():
            try:
                await stranger(self._target.port, TOKEN, chance, self.seen)
            except (OSError, TimeoutError) as error:
                self.seen[type(error).__name__] += 1
            await asyncio.sleep(chance.uniform(0, 0.5))

    async def _watch(self, channel: grpc.aio.Channel, began: float) -> None:
        health, next_line = health_pb2_grpc.HealthStub(channel), 0.0
        while not self._ended.is_set():
            now = look(self._server.process.pid, began, sum(self.tally.codes.values()))
            self.looks.append(now)
            try:
                answer = await health.Check(health_pb2.HealthCheckRequest(service="tiny"), timeout=10)
            except grpc.aio.AioRpcError as error:
                self.unhealthy.append(f"{now.seconds} s: {error.code().name}: {error.details()}")
            else:
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    self.unhealthy.append(f"{now.seconds} s: {answer.status}")
            if now.seconds >= next_line:
                next_line += LINE_SECONDS
                self._say(now)
            await asyncio.sleep(1)

    def _say(self, now: Vitals) -> None:
        others = sum(self.tally.codes.values())
        click.echo(
            f"{now.seconds:6.0f} s  {now.memory_mb:6.1f} MB  {now.files:4d} files  {now.threads:3d} threads  "
            f"{self.tally.answered:7d} good answered, {len(self.tally.failed)} not  {others:7d} others  "
            f"{sum(self.seen.values()):5d} strangers gone"
        )

    def findings(self) -> list[str]:
        """Return what was not as it should be."""
        found = [f"a good request failed: {what}" for what in self.tally.failed]
        found += [f"not healthy at {when}" for when in self.unhealthy]
        found += [f"unexpected: {what} ({count} times)" for what, count in self.tally.unexpected.items()]
        if not self.tally.answered:
            found.append("no good request was answered")
        return found + growth(self.looks)


@click.command()
@click.option("--seconds", type=click.FloatRange(min=5), default=600.0, show_default=True, help="How long.")
@click.option("--seed", default=0, show_default=True, help="Of what is drawn by chance.")
@click.option("--only", multiple=True, help="Callers to let loose, such as good or stranger; by default all.")
def soak(seconds: float, seed: int, only: tuple[str, ...]) -> None:
    """Let good, bad, huge, cancelled and slow callers loose on one server."""
    # asyncio warns of each write to a connection that the server has ended: here that is the point.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "models")
        tokens = Path(folder) / "tokens"
        tokens.write_text(f"soak inference {TOKEN}\n")
        flags = {
            "--tokens": tokens,
            "--max-message-mb": MESSAGE_MB,
            "--max-connection-age-seconds": AGE_SECONDS,
            "--max-connection-age-grace-seconds": AGE_GRACE_SECONDS,
        }
        arguments = [str(part) for flag in flags.items() for part in flag]
        with server_process(Path(folder) / "models", *arguments) as server:
            run = Soak(server, seconds, seed, only)
            asyncio.run(run.run())
            server.terminate()
            status = server.wait()
    findings = run.findings()
    if status != 0:
        findings.append(f"the server ended with status {status}")
    report(run, findings)
    raise SystemExit(1 if findings else 0)


def report(run: Soak, findings: list[str]) -> None:
    third = len(run.looks) // 3
    click.echo("\nHow the others ended:")
    for what, count in sorted((run.tally.codes + run.seen).items()):
        click.echo(f"  {count:7d}  {what}")
    for name, looks in (("first", run.looks[:third]), ("second", run.looks[third : 2 * third])):
        click.echo(f"Median of the {name} third: {middle(looks)}")
    click.echo(f"Median of the last third: {middle(run.looks[2 * third :])}")
    for finding in findings:
        click.echo(f"NOT AS IT SHOULD BE: {finding}")
    click.echo(
        json.dumps(
            {
                "seconds": run.looks[-1].seconds,
                "good_answered": run.tally.answered,
                "good_failed": len(run.tally.failed),
                "others": sum(run.tally.codes.values()),
                "strangers": sum(run.seen.values()),
                "memory_mb": [
                    run.looks[0].memory_mb,
                    middle(run.looks[third : 2 * third]).memory_mb,
                    middle(run.looks[2 * third :]).memory_mb,
                ],
                "healthy": not run.unhealthy,
                "ok": not findings,
            }
        )
    )


if __name__ == "__main__":
    soak()
