"""A trial: the good caller alone, then beside an attack, and what came of it."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strangers.field import GOOD_DEADLINE_SECONDS, TAKEN_BACK, Attack
from strangers.good import Report
from strangers.models import MODELS, SETTINGS, write_models
from support.callers import metric, metrics_text
from support.process import PATIENCE_SECONDS, ServerProcess, environment, server_process

TESTS = Path(__file__).parents[1]
TOKEN = "strangers-token-0123456789"
HEAD_START_SECONDS = 0.3
"""Of the good caller before the attack, and after it."""
SETTLING_SECONDS = 20.0
"""After an attack, until nothing of it is left: what runs is not broken off, and a run may be of seconds."""

MOST_CRASHES_TOLD = 3


class Player:
    """A process that plays the good caller, or an attack."""

    def __init__(self, server: ServerProcess, **arguments: Any) -> None:
        fields = {"port": server.port, "token": TOKEN, "attack": "", "kind": "", "rate": 0, "deadline": 0}
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "strangers.play", json.dumps(fields | arguments)],
            env=environment({"PYTHONPATH": os.pathsep.join(paths)}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self) -> None:
        """Return once it is prepared."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "ready\n", f"a player ended before it was ready: {line}"

    def begin(self) -> None:
        """Let it play."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> Any:
        """Return what it says at its end."""
        told, _ = self._process.communicate(timeout=PATIENCE_SECONDS)
        assert self._process.returncode == 0, "a player failed; its traceback is above"
        return json.loads(told)

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Trial:
    """What came of an attack."""

    attack: Attack
    alone: Report
    beside: Report
    endings: Counter[str]
    """How the attack's requests ended."""
    crashes: list[dict[str, Any]]
    """Lines of the server's log that tell of an error of the server's own."""
    log_lines: int
    loop_seconds: float
    """How late the server's event loop was at most: the bound of a bucket."""
    settled: bool
    """Whether nothing of the attack is left in the server, and it is healthy."""

    @property
    def findings(self) -> list[str]:
        """What is not as it should be, whatever the machine's speed."""
        found = [f"the good caller's answer: {text}" for text in self.beside.texts]
        found += [
            f"{count} requests of the attack ended {status}"
            for status, count in self.endings.items()
            if status not in self.attack.expected | {TAKEN_BACK}
        ]
        found += [f"an error of the server's own: {line}" for line in self.crashes[:MOST_CRASHES_TOLD]]
        if not self.endings:
            found.append("no request of the attack came to an end")
        if not self.settled:
            found.append(f"something of it was left after {SETTLING_SECONDS:g} s")
        return found


class Arena:
    """A server with its models, and trials on it, one after the other."""

    def __init__(self, server: ServerProcess, *, rate: float, seconds: float) -> None:
        self._server = server
        self._rate = rate
        self._seconds = seconds
        self._alone: dict[str, Report] = {}

    def trial(self, attack: Attack) -> Trial:
        """Let one attack play beside the good caller."""
        alone = self._good_alone(attack.beside)
        attacker = Player(self._server, attack=attack.play.__name__, seconds=self._seconds)
        good = self._good(attack.beside, self._seconds + 2 * HEAD_START_SECONDS, attack.deadline)
        try:
            attacker.wait_until_ready()
            good.wait_until_ready()
            self._server.log.clear()
            loop_before = loop_delays(self._server)
            good.begin()
            time.sleep(HEAD_START_SECONDS)
            attacker.begin()
            endings = Counter(attacker.result())
            beside = Report(**good.result())
        finally:
            attacker.close()
            good.close()
        loop_after = loop_delays(self._server)
        settled = self._settles()
        lines = list(self._server.log)
        return Trial(
            attack=attack,
            alone=alone,
            beside=beside,
            endings=endings,
            crashes=[line for line in lines if line["event"] == "request_crashed"],
            log_lines=len(lines),
            loop_seconds=longest(loop_before, loop_after),
            settled=settled,
        )

    def _good_alone(self, kind: str) -> Report:
        if kind not in self._alone:
            player = self._good(kind, self._seconds, GOOD_DEADLINE_SECONDS)
            try:
                player.wait_until_ready()
                player.begin()
                self._alone[kind] = Report(**player.result())
            finally:
                player.close()
        return self._alone[kind]

    def _good(self, kind: str, seconds: float, deadline: float) -> Player:
        return Player(self._server, kind=kind, rate=self._rate, seconds=seconds, deadline=deadline)

    def _settles(self) -> bool:
        until = time.monotonic() + SETTLING_SECONDS
        while time.monotonic() < until:
            if self._server.process.poll() is not None:
                return False
            if metric(self._server, "vistazo_inference_in_flight_requests") == 0:
                return metric(self._server, "vistazo_model_ready") == len(MODELS)
            time.sleep(0.05)
        return False


def loop_delays(server: ServerProcess) -> dict[float, float]:
    """Return how often the server's event loop was late by how much at most, cumulated."""
    name = "vistazo_event_loop_delay_seconds_bucket"
    buckets = {}
    for line in metrics_text(server).splitlines():
        if line.startswith(name):
            buckets[float(line.split('"')[1])] = float(line.split()[-1])
    return buckets


def longest(before: dict[float, float], after: dict[float, float]) -> float:
    """Return the bound of the last bucket that has more in it; 0 where nothing was counted."""
    counts = {bound: after[bound] - before.get(bound, 0) for bound in sorted(after)}
    most = max(counts.values(), default=0)
    return min((bound for bound, count in counts.items() if most and count == most), default=0.0)


@contextmanager
def arena(folder: Path, *, rate: float, seconds: float) -> Iterator[Arena]:
    """Hold a server of the models in a folder of its own."""
    write_models(folder / "models")
    tokens = folder / "tokens"
    tokens.write_text(f"strangers inference {TOKEN}\n")
    settings = folder / "models.toml"
    settings.write_text(SETTINGS)
    flags = ("--tokens", str(tokens), "--model-settings", str(settings))
    with server_process(folder / "models", *flags) as server:
        yield Arena(server, rate=rate, seconds=seconds)
