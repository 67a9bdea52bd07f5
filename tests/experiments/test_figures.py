"""Pictures by what their axes hold: lines, labels and numbers against rows made by hand; and files that are images."""

import dataclasses
import json
import math
import struct
from itertools import pairwise

import pytest
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from scipy import stats

from dstee import cli
from dstee._console import UsageError
from dstee.experiments.figures import canvas
from dstee.experiments.figures.cost import accuracy_by_cost
from dstee.experiments.figures.exploration import over_setting, over_time
from dstee.experiments.figures.fig1 import ignored_bars
from dstee.experiments.figures.layers import by_layer
from dstee.experiments.ignored import Measurement
from dstee.experiments.results.file import dump_rows
from dstee.experiments.results.row import Epoch, Outcome, Row, Update
from dstee.experiments.styles import STYLES
from dstee.metrics import Ignored, IgnoredGrowth


def row(method="dst-ee", seed=0, accuracy=0.9, label=None, flops=0.1, r=0.2, **settings):
    """Three epochs that end at ``accuracy``, two updates that end at ``r`` in all, in two layers."""
    shared = {"data": "digits", "model": "mlp"} | ({} if method == "dense" else {"sparsity": 0.9})
    epochs = tuple(Epoch(n, accuracy - 0.1 * (3 - n)) for n in (1, 2, 3))
    updates = tuple(Update(20 * n, r * n / 2, 0.1, 0.5, 0.0, [r * n / 4, r * n / 3]) for n in (1, 2))
    outcome = Outcome(accuracy, r, 10, 100, flops, flops, "00", scores={"auc": accuracy / 2})
    return Row(label or method.upper(), method, seed, {**shared, **settings}, outcome, epochs, updates)


ACCURACY = {0.0: [0.80, 0.84, 0.82], 1e-3: [0.83, 0.85, 0.86], 0.1: [0.80, 0.90, 0.81]}
SWEEP = [row(seed=seed, accuracy=a, r=0.2 + c, c=c) for c, values in ACCURACY.items() for seed, a in enumerate(values)]


def words(figure: Figure) -> str:
    texts = [figure.get_suptitle(), *(t.get_text() for legend in figure.legends for t in legend.get_texts())]
    return "\n".join(texts + [axes.get_title() for axes in figure.axes])


def in_picture(figure: Figure) -> None:
    """No text reaches beyond the edge, and no two titles or tick labels of an axis lie on each other."""
    figure.canvas.draw()
    renderer, edge = figure.canvas.get_renderer(), figure.bbox
    ticks = {t for axes in figure.axes for t in (*axes.get_xticklabels(which="both"), *axes.get_yticklabels(which="both"))}
    for text in figure.findobj(lambda a: hasattr(a, "get_text") and a.get_text() and a.get_visible() and a not in ticks):
        box = text.get_window_extent(renderer)
        assert edge.x0 - 1 <= box.x0 and box.x1 <= edge.x1 + 1, text
        assert edge.y0 - 1 <= box.y0 and box.y1 <= edge.y1 + 1, text
    for axes in figure.axes:
        boxes = [t.get_window_extent(renderer) for t in axes.get_xticklabels() if t.get_text() and t.get_visible()]
        seen = [b for b in boxes if axes.bbox.x0 - 1 <= (b.x0 + b.x1) / 2 <= axes.bbox.x1 + 1]
        assert all(edge.x0 <= box.x0 and box.x1 <= edge.x1 + 1 and edge.y0 <= box.y0 for box in seen), axes.get_title()
        assert all(a.x1 <= b.x0 for a, b in pairwise(sorted(seen, key=lambda b: b.x0))), axes.get_title()
    tops = [axes.title.get_window_extent(renderer) for axes in figure.axes if axes.get_title()]
    assert not any(a.overlaps(b) for i, a in enumerate(tops) for b in tops[:i])


# --- over c --------------------------------------------------------------------------------------------------------------


def test_fig3_has_a_line_for_each_value_in_the_colour_of_the_method():
    figure = over_time(SWEEP)
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["c = 0", "c = 0.001", "c = 0.1"]
    assert [line.get_color() for line in right.lines] == [STYLES["dst-ee"].color] * 3
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in left.lines}) == 3
    assert list(left.lines[1].get_xdata()) == [20, 40]
    assert list(left.lines[1].get_ydata()) == pytest.approx([0.201 / 2, 0.201])
    assert list(right.lines[0].get_ydata()) == pytest.approx([62, 72, 82])
    band = right.collections[2].get_paths()[0].vertices
    assert (min(band[:, 1]), max(band[:, 1])) == (pytest.approx(60), pytest.approx(90))
    assert figure.get_suptitle() == "digits, mlp, 90 % sparse; mean of seeds 0-2, bands from lowest to highest"
    in_picture(figure)


def test_fig3_with_other_methods_and_another_setting():
    figure = over_time([*SWEEP, *(row("rigl", seed) for seed in range(3))])
    assert [line.get_label() for line in figure.axes[0].lines] == [*(f"DST-EE, c = {c}" for c in ("0", "0.001", "0.1")), "RIGL"]
    assert figure.axes[0].lines[3].get_color() == STYLES["rigl"].color
    by_lr = over_time([row(lr=lr, seed=seed) for lr in (0.1, 0.01) for seed in (0, 1)], "lr")
    assert [line.get_label() for line in by_lr.axes[0].lines] == ["lr = 0.01", "lr = 0.1"]


def test_c_has_the_paired_intervals_of_scipy():
    figure = over_setting(SWEEP)
    accuracy, difference, explored = figure.axes
    assert [t.get_text() for t in accuracy.get_xticklabels()] == ["0", "0.001", "0.1"]
    assert list(accuracy.lines[0].get_xdata()) == pytest.approx([-4, -3, -1])
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([82, 254 / 3, 251 / 3])
    assert list(explored.lines[0].get_ydata()) == pytest.approx([0.2, 0.201, 0.3])
    bars = [c for c in difference.containers if isinstance(c, ErrorbarContainer)]
    for container, c in zip(bars, (1e-3, 0.1), strict=True):
        values = [100 * (a - b) for a, b in zip(ACCURACY[c], ACCURACY[0.0], strict=True)]
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        low, high = container[2][0].get_segments()[0][:, 1]
        assert (low, high) == (pytest.approx(expected.low), pytest.approx(expected.high))
        assert container[0].get_xdata()[0] == pytest.approx(math.log10(c))
    in_picture(figure)


def test_a_training_that_diverged_is_no_pair():
    lost = SWEEP[4]
    outcome = dataclasses.replace(lost.result, accuracy=None, diverged_at=7)
    figure = over_setting([*SWEEP[:4], dataclasses.replace(lost, result=outcome), *SWEEP[5:]])
    first = next(c for c in figure.axes[1].containers if isinstance(c, ErrorbarContainer))
    assert first[0].get_ydata()[0] == pytest.approx((3 + 4) / 2)
    assert figure.axes[0].lines[0].get_ydata()[1] == pytest.approx((83 + 86) / 2)


def test_c_without_zero_and_with_another_score():
    figure = over_setting([r for r in SWEEP if r.settings["c"]], score="auc")
    assert len(figure.axes) == 2 and list(figure.axes[0].lines[0].get_ydata()) == pytest.approx([127 / 3, 251 / 6])
    more = over_setting([*SWEEP, *(row(seed=s, c=c, sparsity=0.98) for s in range(3) for c in (0.0, 0.1))])
    assert words(more).splitlines()[1:3] == ["DST-EE, sparsity = 0.9", "DST-EE, sparsity = 0.98"]


# --- cost, layers, Fig. 1 ------------------------------------------------------------------------------------------------


def test_cost_has_a_point_for_each_method_and_sparsity():
    rows = [row("dense", seed, accuracy=0.95, flops=1.0) for seed in (0, 1)]
    for sparsity, flops in ((0.9, 0.12), (0.98, 0.03)):
        for method in ("rigl", "dst-ee"):
            rows += [row(method, seed, accuracy=sparsity - 0.1 * seed, flops=flops, sparsity=sparsity) for seed in (0, 1)]
    figure = accuracy_by_cost(rows)
    axes = figure.axes[0]
    points = {(c[0].get_xdata()[0], c[0].get_ydata()[0]): c for c in axes.containers}
    assert len(axes.containers) == 5 and {x for x, _ in points} == {1.0, 0.12, 0.03} and axes.get_xscale() == "log"
    one = next(c for c in axes.containers if c[0].get_color() == STYLES["rigl"].color)
    low, high = one[2][0].get_segments()[0][:, 1]
    assert (low + high) / 2 == pytest.approx(85) and (high - low) / 2 == pytest.approx(10 / 2**0.5)
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["DENSE", "DST-EE", "RIGL", "90 % sparse", "98 % sparse"]
    assert one[0].get_markersize() > next(c for (x, _), c in points.items() if x == 0.03)[0].get_markersize()
    in_picture(figure)


def test_layers_have_a_panel_for_each_method():
    figure = by_layer([row(m, s) for m in ("rigl", "dst-ee", "set") for s in (0, 1)])
    assert [axes.get_title() for axes in figure.axes] == ["DST-EE", "RIGL", "SET"]
    for axes in figure.axes:
        assert list(axes.lines[1].get_ydata()) == pytest.approx([0.2 / 3, 0.4 / 3]) and len(axes.lines) == 2
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["1", "2"]
    in_picture(figure)


def measured(method, seed, step=60, shift=0, layers=3):
    growth = IgnoredGrowth({f"layer{i}.weight": Ignored(100, 10, 10, 5 + seed + shift) for i in range(layers)})
    return Measurement(method.upper(), method, seed, {"data": "mnist"}, step, 100, {"dense": growth, "sparse": growth})


def test_fig1_has_bars_and_what_random_growth_gives():
    figure = ignored_bars([measured(m, seed, step) for m in ("rigl", "set") for seed in (0, 1) for step in (60, 200)])
    assert len(figure.axes) == 4
    for axes in figure.axes:
        bars = [c[0] for c in axes.containers if isinstance(c, BarContainer)]
        assert [bar.get_height() for bar in bars] == pytest.approx([0.55] * 8)
        dashes = [line for line in axes.lines if line.get_color() == "black"]
        assert [list(line.get_ydata()) for line in dashes] == [[0.9, 0.9]] * 8
        assert [t.get_text() for t in axes.get_xticklabels()] == ["layer0", "layer1", "layer2", "all"]
    assert "update at step 200: |g| after 100 sparse steps" in words(figure)
    assert "mnist; mean of seeds 0, 1, bars from lowest to highest" in words(figure)
    in_picture(figure)
    in_picture(ignored_bars([measured("rigl", 0, layers=17)]))


# --- hostile rows, files, commands ---------------------------------------------------------------------------------------

HOSTILE = ["$x^2$ \\frac{1}{0}", "$", "a\nb\x1b[31m", "很长的名字", "x" * 300, "%s {0} _^&#~", "-1", "$\\undefined$"]


def test_hostile_labels_are_drawn_as_they_are(tmp_path):
    rows = [row(label=label, c=c, seed=s) for label in HOSTILE for c in (0.0, 0.1) for s in (0, 1)]
    for figure, ending in ((over_time(rows), ".pdf"), (accuracy_by_cost(rows), ".svg"), (by_layer(rows[:8]), ".png")):
        assert canvas.render(figure, tmp_path / f"x{ending}")
        text = words(figure)
        assert r"\$x^2\$ \frac{1}{0}" in text and "\x1b" not in text and "x" * 61 not in text


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (lambda: over_time([row(), row(seed=1)]), "no more than one value of c and c_rel"),
        (lambda: over_time([row(), row(lr=0.1), row(lr=0.2)]), "--by lr draws it over lr"),
        (lambda: over_time(SWEEP, "cc"), r"no run has a setting 'cc' \(did you mean 'c'\?\)"),
        (
            lambda: over_time([*SWEEP, row(c=0.1, lr=1.0)]),
            "several trainings of seed 0; they differ in lr: .* --only lr=VALUE",
        ),
        (lambda: over_time([row(c=c) for c in (0.1,)]), "no more than one value"),
        (lambda: over_setting([row(data="a", c=0.0), row(data="b", c=0.1)], "data"), "its values are no numbers >= 0"),
        (lambda: over_setting([*SWEEP[:4], SWEEP[5]]), "cannot be paired: .* has no seed 1"),
        (lambda: by_layer([Row("s", "static", 0, {}, row().result)]), "no update of these"),
        (lambda: by_layer([row(lr=float(i)) for i in range(13)]), "13 panels are too many, at most 12"),
        (lambda: accuracy_by_cost([row()], "f1"), "no training has the score 'f1'"),
        (lambda: ignored_bars([measured("set", 0, step) for step in range(5)]), "5 updates are too many"),
        (lambda: ignored_bars([measured("set", 0), measured("set", 0, shift=1)]), "several measurements of one seed"),
    ],
)
def test_what_cannot_be_drawn_is_said(draw, text):
    with pytest.raises(UsageError, match=text):
        draw()


def test_curves_that_were_left_out_are_said():
    bare = [Row(r.label, r.method, r.seed, r.settings, r.result) for r in SWEEP]
    with pytest.raises(UsageError, match="have no curves"):
        over_time(bare)
    assert over_setting(bare)


def test_the_command_writes_images_of_results_files(tmp_path, capsys):
    file = tmp_path / "results.json"
    file.write_bytes(dump_rows(SWEEP, "dstee sweep"))
    for kind in ("fig3", "layers", "cost"):
        output = tmp_path / f"{kind}.png"
        assert cli.main(["figure", kind, str(file), "--output", str(output)]) == 0
        data = output.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and width % 15 == 0 and 1000 <= width <= 2400 and 500 <= height <= 1000, kind
    for name in ("a.svg", "b.svg", "c.pdf"):
        assert cli.main(["figure", "c", str(file), "--output", str(tmp_path / name)]) == 0
    svg, again, pdf = ((tmp_path / name).read_bytes() for name in ("a.svg", "b.svg", "c.pdf"))
    assert svg.startswith(b"<?xml") and svg == again and pdf.startswith(b"%PDF-")
    assert "figure  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("figg3 {f} --output x.png", "unknown kind of figure 'figg3' (did you mean 'fig3'?), expected one of fig1, fig3, c"),
        ("c {f} --output x.gif", "--output x.gif must end in .png, .svg, .pdf"),
        ("c {f} --output x.json", "--output x.json must end in .png, .svg, .pdf"),
        ("cost {f} --by c --output x.png", "--by is for fig3, c, not for cost"),
        ("c {f} --only sparsity=0.5 --output x.png", "no run has sparsity=0.5"),
        ("fig1 {f} --output x.png", "it is no file of measurements"),
        ("overlap {f} --output x.png", "has no masks, which are in run folders alone"),
        ("c nothing --output x.png", "there is no nothing"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(arguments, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.json").write_bytes(dump_rows(SWEEP))
    assert cli.main(["figure", *arguments.format(f="r.json").split()]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_measurements_are_merged_into_one_file(tmp_path):
    from dstee.experiments.ignored import dump_measurements, read_measurements

    for seed in (0, 1):
        (tmp_path / f"{seed}.json").write_bytes(dump_measurements([measured("rigl", seed), measured("set", seed)]))
    files = [str(tmp_path / "0.json"), str(tmp_path / "1.json")]
    both = tmp_path / "both.json"
    assert cli.main(["figure", "fig1", *files, *files, "--only", "method=rigl", "--output", str(both)]) == 0
    assert [(m.method, m.seed) for m in read_measurements([both])] == [("rigl", 0), ("rigl", 1)]
    assert cli.main(["figure", "fig1", str(both), "--output", str(tmp_path / "x.svg")]) == 0
    assert json.loads(both.read_text())["format"] == "dstee-ignored"
