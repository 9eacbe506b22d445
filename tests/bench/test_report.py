"""Figures, tables, JSON and plots."""

import json
import math

import numpy as np
import pytest
from rich.console import Console

from vistazo_bench.measuring.figures import Figure, ratio_figure, rounds, spread
from vistazo_bench.measuring.machine import CpuWatch
from vistazo_bench.measuring.rig import Rig
from vistazo_bench.reporting.plot import text_plot, write_png
from vistazo_bench.reporting.report import figures_table, one_line, result_object, write_json
from vistazo_bench.standard.memory import second_half_growth


def text(renderable):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(renderable)
    console.file.close()
    return console.export_text()


def test_a_figure_is_the_median_of_its_rounds_with_least_and_greatest():
    figure = ratio_figure("share", [0.9, 1.2, 1.0], target=0.95)
    assert (figure.measured, figure.low, figure.high, figure.met) == (1.0, 0.9, 1.2, True)
    assert figure.detail == {"rounds": [0.9, 1.2, 1.0]}


def test_rounds_without_a_value_do_not_count():
    assert spread([math.nan, 2.0]).median == 2.0
    none = ratio_figure("p50", [math.nan], target=1.0, note="nothing came")
    assert (none.measured, none.met) == (None, None)
    assert "nothing came" in none.note


@pytest.mark.parametrize(
    ("better", "measured", "met"),
    [("higher", 1.0, True), ("higher", 0.9, False), ("lower", 1.0, True), ("lower", 1.1, False)],
)
def test_targets_have_a_direction(better, measured, met):
    assert Figure("f", measured, target=1.0, better=better).met is met


def test_there_is_always_one_round_and_no_more_than_the_time_allows():
    assert list(rounds(3, 60.0)) == [0, 1, 2]
    assert list(rounds(3, 0.0)) == [0]


def test_the_table_says_met_missed_and_not_measured():
    figures = [
        Figure("good", 0.97, "×", 1, 0.95, low=0.9, high=0.99),
        Figure("bad", 5.0, "ms", 2, 2.0, "lower"),
        Figure("absent", None, "×", 6, 1.7, note="not in the repository"),
    ]
    shown = text(figures_table(figures, title="a title"))
    lines = {word: line for line in shown.splitlines() for word in ("good", "bad", "absent") if word in line}
    assert "met" in lines["good"]
    assert "0.970 ×" in lines["good"]
    assert "0.900 – 0.990" in lines["good"]
    assert "≥ 0.95 ×" in lines["good"]
    assert "missed" in lines["bad"]
    assert "≤ 2 ms" in lines["bad"]
    assert "not measured" in lines["absent"]
    assert "not in the repository" in lines["absent"]


def test_the_json_is_one_line_has_everything_and_no_nan(tmp_path):
    rig = Rig(lambda text: None)
    rig.segments.append({"name": "segment", "p50_seconds": math.nan, "by_batch": {1: 2.0}})
    figures = [Figure("share", 0.9, "×", 1, 0.95, detail={"rounds": [0.9, math.inf]})]
    result = result_object(
        figures, rig, scenario="closed loop", command="vistazo bench", commands=["vistazo serve"]
    )
    line = one_line(result)
    assert "\n" not in line
    read = json.loads(line)
    assert set(read) == {
        *("format", "scenario", "command", "server_commands", "machine"),
        *("answers_checked", "answers_wrong", "figures", "segments", "cpu_elsewhere_share"),
    }
    assert read["figures"][0]["met"] is False
    assert read["figures"][0]["detail"] == {"rounds": [0.9, None]}
    assert read["segments"] == [{"name": "segment", "p50_seconds": None, "by_batch": {"1": 2.0}}]
    assert read["machine"]["cores"] >= 1
    assert "grpcio" in read["machine"]["versions"]

    path = tmp_path / "bench" / "results.json"
    write_json(path, result)
    assert json.loads(path.read_text()) == read
    assert [child.name for child in path.parent.iterdir()] == ["results.json"]


def test_the_share_of_the_cpu_that_went_elsewhere_is_a_share():
    watch = CpuWatch()
    sum(range(3_000_000))
    assert 0 <= watch.elsewhere_share() <= 1


def test_memory_is_flat_when_it_grew_in_the_first_half_only():
    assert second_half_growth([100, 150, 190, 200, 200, 200, 200, 200]) == pytest.approx(0, abs=1e-9)
    assert second_half_growth([100, 100, 100, 100, 110, 120, 130]) == pytest.approx(0.3, rel=0.05)


def test_the_text_plot_has_a_bar_for_each_load():
    series = {"fast": np.linspace(0.001, 0.002, 100), "slow": np.linspace(0.1, 0.2, 100), "none": np.empty(0)}
    shown = text(text_plot(series, unicode=False))
    fast, slow = (next(line for line in shown.splitlines() if name in line) for name in ("fast", "slow"))
    assert "1.49" in fast
    assert fast.index("|") < slow.index("#")
    assert "none" not in shown
    assert text(text_plot({}, unicode=True))


def test_the_png_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "latency.png"
    write_png(path, {"load": np.linspace(0.001, 0.1, 1000)}, title="latency")
    assert path.read_bytes().startswith(b"\x89PNG")
