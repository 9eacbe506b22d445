"""Let each attack play beside the good caller and print what that waits: 0 when it lost nothing."""

import json
import tempfile
from pathlib import Path

import click

from strangers.attacks import ATTACKS
from strangers.trial import Trial, arena

COLUMNS = (
    *("attack", "good caller asks", "answered", "lost", "wrong"),
    *("p50 ms alone", "beside", "p99 ms alone", "beside", "times"),
    *("loop late at most, ms", "attacker's requests", "log lines/s", "attacker's by right"),
)
MOST_TIMES = 2.0
"""What the good caller's p99 should be at most, in its own alone, but for what is the attacker's by right."""


@click.command()
@click.option("--seconds", type=click.FloatRange(min=1), default=8.0, show_default=True, help="Of an attack.")
@click.option(
    "--rate", type=click.FloatRange(min=1), default=50.0, show_default=True, help="Good requests/s."
)
@click.option("--only", multiple=True, type=click.Choice(list(ATTACKS)), help="Attacks; by default all.")
def strangers(seconds: float, rate: float, only: tuple[str, ...]) -> None:
    """Measure what one bad caller costs a good one, for each way to be bad; each on a server of its own."""
    trials = []
    click.echo(line(COLUMNS))
    click.echo(line(["---"] * len(COLUMNS)))
    for name in only or ATTACKS:
        with tempfile.TemporaryDirectory() as folder, arena(Path(folder), rate=rate, seconds=seconds) as one:
            trials.append(one.trial(ATTACKS[name]))
        click.echo(row(trials[-1], seconds))
    findings = [f"{trial.attack.name}: {finding}" for trial in trials for finding in trial.findings]
    for finding in findings:
        click.echo(f"NOT AS IT SHOULD BE: {finding}")
    summary = {
        "attacks": len(trials),
        "answered": sum(len(trial.beside.waits) for trial in trials),
        "lost": sum(trial.beside.lost for trial in trials),
        "wrong": sum(trial.beside.wrong for trial in trials),
        "within_twice": sum(times(trial) <= MOST_TIMES for trial in trials),
        "ok": not findings,
    }
    click.echo(json.dumps(summary))
    raise SystemExit(1 if findings else 0)


def times(trial: Trial) -> float:
    """Return how many times its own p99 the good caller's is beside the attack."""
    return trial.beside.percentile(99) / trial.alone.percentile(99)


def row(trial: Trial, seconds: float) -> str:
    """Return a trial as a row of the table."""
    alone, beside = trial.alone, trial.beside
    waits = [1000 * report.percentile(q) for q in (50, 99) for report in (alone, beside)]
    endings = ", ".join(f"{count} {status}" for status, count in sorted(trial.endings.items()))
    return line(
        [
            *(trial.attack.name, trial.attack.beside, len(beside.waits), beside.lost, beside.wrong),
            *(f"{wait:.1f}" for wait in waits),
            *(f"{times(trial):.1f}", f"{1000 * trial.loop_seconds:.0f}", endings),
            *(f"{trial.log_lines / seconds:.0f}", trial.attack.entitled),
        ]
    )


def line(cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    strangers()
