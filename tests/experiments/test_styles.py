"""A method has one colour, in every picture and whatever else is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiments.test_figures import measured, row
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer

from dstee import cli
from dstee.experiments import plot
from dstee.experiments.figures import canvas
from dstee.experiments.figures.cost import accuracy_by_cost
from dstee.experiments.figures.exploration import over_setting, over_time
from dstee.experiments.figures.fig1 import ignored_bars
from dstee.experiments.styles import STYLES, style_of, styles_of


@pytest.mark.parametrize("others", [[], ["set"], ["rigl"] * 3, ["dst-ee", "rigl", "mine", "set", "rigl"]])
@pytest.mark.parametrize("method", ["rigl", "dense", "mine", "dst-ee"])
def test_the_colour_does_not_depend_on_what_else_is_drawn(method, others):
    for methods in ([method, *others], [*others, method], [method, *others, method]):
        found = styles_of(methods)
        assert [style.color for style in found] == [style_of(name).color for name in methods]


def test_lines_of_one_method_can_be_told_apart():
    styles = styles_of(["dst-ee"] * 40 + ["rigl"])
    assert len({(str(style.dashes), style.marker) for style in styles[:40]}) == 40
    assert all(style.line()["marker"] == style.marker for style in styles[:40]) and "marker" not in styles[40].line()
    assert len({style.hatch for style in styles[:8]}) == 8


def colours(figure):
    """Of all lines and bars but black and grey ones."""
    drawn = {to_hex(line.get_color()) for axes in figure.axes for line in axes.lines}
    drawn |= {
        to_hex(bar.get_facecolor()) for axes in figure.axes for c in axes.containers if isinstance(c, BarContainer) for bar in c
    }
    return {colour.upper() for colour in drawn} - {"#000000", "#666666", "#333333"}


def test_every_picture_has_the_colours_of_its_methods_alone():
    """Two methods with several lines each, in each kind of picture that compares methods."""
    both = {STYLES[key].color for key in ("rigl", "dst-ee")}
    cells = [("dst-ee", c) for c in (0.0, 0.1, 1.0)] + [("rigl", 0.1), ("rigl", 0.2)]
    rows = [row(m, seed, c=c, flops=0.1 + c) for m, c in cells for seed in (0, 1)]
    for figure in (over_time(rows), over_setting(rows), accuracy_by_cost(rows)):
        assert colours(figure) == both
    bars = [measured(m, seed) for m in ("rigl", "dst-ee") for seed in (0, 1)]
    more = [one for name in ("a", "b") for one in [type(bars[0])(name, "rigl", 0, {}, 60, 100, bars[0].measures)]]
    figure = ignored_bars([*bars, *more])
    assert colours(figure) == both
    canvas.render(figure, Path("x.png"))


def test_plots_of_several_runs(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(plot, "styles_of", lambda methods: drawn.append(methods) or styles_of(methods))
    run = Path(__file__).parent / "data" / "run-0.1.0"
    assert cli.main(["plot", str(run), str(run), "--output", str(tmp_path / "x.png")]) == 0
    assert drawn == [["dst-ee", "dst-ee"]]
    capsys.readouterr()
