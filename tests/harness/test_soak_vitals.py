"""The soak's verdict: what grows is found, what comes and goes is not."""

import pytest

from soak.vitals import Vitals, growth


def looks(**ends: float) -> list[Vitals]:
    """Return looks of which the named figures rise steadily to where they end, and the others stay."""
    steady = {"memory_mb": 100.0, "files": 50, "threads": 10, "others": 0}
    return [
        Vitals(
            seconds=second,
            **{name: flat + (ends.get(name, flat) - flat) * second / 90 for name, flat in steady.items()},
        )
        for second in range(90)
    ]


def test_what_stays_is_no_growth():
    assert growth(looks()) == []


@pytest.mark.parametrize(
    ("figure", "end", "says"),
    [("memory_mb", 150, "resident memory"), ("files", 150, "open files"), ("threads", 40, "threads")],
)
def test_what_grows_is_found(figure, end, says):
    (finding,) = growth(looks(**{figure: end}))
    assert says in finding


def test_what_grpc_keeps_of_cancelled_calls_is_known():
    assert growth(looks(memory_mb=145)) != []
    assert growth(looks(memory_mb=145, others=300_000)) == []
    assert growth(looks(memory_mb=200, others=300_000)) != []
