"""Tables of rows made by hand: what stands where, and every number worked out on paper."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from support.result_rows import MADE_BY, small_set, training, trainings

from dstee._console import UsageError
from dstee.experiments.data import DATA_SETS
from dstee.experiments.results.choice import only
from dstee.experiments.results.file import dump_rows, parse_rows
from dstee.experiments.tables.formats import as_csv, as_latex, as_markdown
from dstee.experiments.tables.table import make_table
from dstee.experiments.tables.text import footer, sheets

SNAPSHOTS = Path(__file__).parent / "data" / "tables"


def test_groups_columns_and_means():
    table = make_table(small_set())
    assert [c.title for c in table.columns] == ["90 %", "98 %"] and table.setting_names == ("sparsity",)
    assert table.groups == [("dense", ["dense"]), ("dense-to-sparse", ["GMP"]), ("dynamic", ["DST-EE", "RigL", "SET"])]
    assert table.cells["dense", 0].rows == table.cells["dense", 1].rows  # it has no sparsity
    cell = table.cells["SET", 1]
    assert cell.mean == pytest.approx(0.8) and cell.std == pytest.approx(0.02)
    assert cell.means == pytest.approx(
        {"mean_density": 0.02, "training_flops": 0.03, "inference_flops": 0.02, "exploration": 0.02,
         "explored_share": 0.5, "dead_units": 0.25}
    )  # fmt: skip
    assert ("GMP", 1) not in table.cells and table.baseline is None and cell.comparison is None and table.comparisons == 0


T2, T1 = 4.30265, 12.7062  # 97.5 % quantiles of Student's t
# mean, half of the interval, p and p after Holm's correction: the p-values in order are those of DST-EE at 90 % (x 7), SET at
# 98 % (x 6) and 90 % (x 5), GMP (x 4), then dense twice and DST-EE at 98 % (lifted to the one before).
EE_90_P = 1 - 301 / math.sqrt(301**2 + 2)
GMP_P = 1 - math.sqrt(3 / 5)
SET_98_P = 1 - math.sqrt(100 / 106)
SET_90_P = 1 - math.sqrt(16 / 18)
AGAINST_RIGL = {
    ("dense", 0): (0.02, 0, 0.25, 4 * GMP_P),  # three equal differences: 2^-2
    ("dense", 1): (0.06, 0, 0.25, 4 * GMP_P),
    ("DST-EE", 0): (0.0301 / 3, T2 * 0.0001 / 3, EE_90_P, 7 * EE_90_P),  # 1 1 1.01: t = 301
    ("GMP", 0): (0.005, T2 * 0.005 / math.sqrt(3), GMP_P, 4 * GMP_P),  # .5 0 1: t = sqrt(3)
    ("SET", 0): (-0.04 / 3, T2 * 0.01 / 3, SET_90_P, 5 * SET_90_P),  # -1 -2 -1: t = -4
    ("SET", 1): (-0.1, T2 * 0.03 / math.sqrt(3), SET_98_P, 6 * SET_98_P),  # -10 -7 -13: t = -10 / sqrt(3)
    ("DST-EE", 1): (0.02, T1 * 0.01, 1 - 2 * math.atan(2) / math.pi, 4 * GMP_P),  # 1 3: t = 2
}


def test_comparisons_worked_out_by_hand():
    table = make_table(small_set(), baseline="rigl")
    assert table.baseline == "RigL" and table.comparisons == 7
    for key, (mean, half, p, corrected) in AGAINST_RIGL.items():
        found = table.cells[key].comparison
        assert (found.mean, found.p, table.cells[key].corrected) == pytest.approx((mean, p, corrected), abs=1e-9), key
        assert found.interval == (pytest.approx((mean - half, mean + half), rel=1e-5) if half else None), key
        assert found.all_equal == (half == 0) and found.pairs == (2 if key == ("DST-EE", 1) else 3)
    verdicts = {key: table.cells[key].verdict for key in AGAINST_RIGL}
    assert {key for key, words in verdicts.items() if words == "higher"} == {("DST-EE", 0)}
    assert set(verdicts.values()) == {"higher", "no significant difference"}
    assert table.cells["RigL", 0].verdict is None


def test_the_baseline_s_names():
    rows = [*small_set(), *trainings("rigl", 0.9, 0.9, 0.9, sparsity=0.9, label="RigL-ITOP")]
    assert [make_table(rows, baseline=name).baseline for name in ("rigl", "RigL")] == ["RigL", "RigL"]  # the plain one
    mine = trainings("set", 0.5, 0.6, sparsity=0.9, label="mine")
    assert make_table(mine, baseline="set").baseline == make_table(mine, baseline="mine").baseline == "mine"


def test_the_order_of_rows_changes_nothing():
    expected = make_table(small_set(), baseline="RigL")
    rows = small_set()
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        table = make_table(rows, baseline="RigL")
        assert as_csv(table) == as_csv(expected) and as_markdown(table) == as_markdown(expected)


def test_the_best_are_those_that_nothing_shows_to_be_lower():
    """At 90 % the best is DST-EE; RigL is lower by 1 1 1.01 (t = -301); SET by 2 3 2 (t = -7), times 4 in the family of five,
    which does not show it to be lower, but its mean is below RigL's."""
    table = make_table(small_set())
    assert table.comparisons_with_best == 5 and 4 * (1 - 7 / math.sqrt(51)) > 0.05
    assert {key for key, cell in table.cells.items() if cell.best} == {("GMP", 0), ("DST-EE", 0)}
    # At 98 % nothing is shown to be lower than DST-EE, so that all would be marked, and none is.
    rows = [*trainings("rigl", 0.9, 0.8, 0.85, sparsity=0.9), *trainings("set", 0.799, 0.7, 0.752, sparsity=0.9)]
    table = make_table(rows)  # -.101 -.1 -.098: t = -113
    assert [label for (label, _), cell in table.cells.items() if cell.best] == ["RigL"] and table.comparisons_with_best == 1
    for few in (rows[:1] + rows[3:4], rows[:2] + rows[3:]):  # one seed; seeds that differ: nothing can be said
        table = make_table(few)
        assert not any(cell.best for cell in table.cells.values()) and "bold" not in " ".join(footer(table)).lower()
    said = footer(make_table(rows[:2] + trainings("set", 0.85, 0.799, sparsity=0.9)))  # t of one degree of freedom: 1.04
    assert said[1].startswith("None is bold: no sparse training is significantly lower than the best of its column (paired t")


def test_the_footer_says_what_a_reader_cannot_see():
    rows = trainings("rigl", 0.9, sparsity=0.9)
    assert footer(make_table(rows))[0] == "Accuracy on the test set in %: nothing is known of the spread over 1 seed (0)."
    chosen = trainings("rigl", 0.9, 0.8, sparsity=0.9, data="wiki_vote", scores={"last_accuracy": 0.8})
    said = (
        "Accuracy on the test set in % at the epoch of the best validation score: mean ± sample standard deviation of 2 seeds"
    )
    assert footer(make_table(chosen))[0].startswith(said)
    both = footer(make_table([*rows, *chosen]))[0]
    assert both.startswith("Accuracy on the test set in % (of wiki_vote at the epoch of the best validation score): mean ±")
    longer = make_table([*rows, *trainings("admm", 0.9, sparsity=0.9, epochs=3), *trainings("dense", 0.9, epochs=3)])
    said = "Train FLOPs are relative to dense training of as many epochs, which differ: 2 of RigL; 3 of dense, ADMM."
    assert said in " ".join(footer(longer)).replace("ADMM, dense", "dense, ADMM")
    assert "as many epochs" not in " ".join(footer(make_table(small_set())))


def test_diverged_trainings_are_marked_and_in_no_mean():
    table = make_table(small_set())
    cell = table.cells["DST-EE", 1]
    assert cell.mean == pytest.approx(0.915) and cell.diverged == [2]
    assert "Diverged (the loss was not finite any more), and in no mean: DST-EE at 98 %, 1 of 3 (seed 2)." in footer(table)
    gone = make_table(
        [*trainings("set", None, None, sparsity=0.9), *trainings("rigl", 0.5, 0.6, sparsity=0.9)], baseline="rigl"
    )
    assert gone.cells["SET", 0].mean is None and gone.cells["SET", 0].comparison is None and gone.comparisons == 0
    assert "| 2 of 2 diverged |" in as_markdown(gone) and gone.cells["SET", 0].means["mean_density"] is None


def test_seeds_that_diverged_in_the_baseline_are_no_pairs():
    rows = [*trainings("rigl", 0.5, None, 0.7, sparsity=0.9), *trainings("set", 0.6, 0.1, 0.9, sparsity=0.9)]
    table = make_table(rows, baseline="rigl")
    found = table.cells["SET", 0].comparison
    assert found.pairs == 2 and found.mean == pytest.approx(0.15) and found.p == pytest.approx(1 - 2 * math.atan(3) / math.pi)
    assert "+15.00 [" in as_markdown(table) and "(2 pairs)" in as_markdown(table)
    assert table.cells["SET", 0].mean == pytest.approx(1.6 / 3)  # its own mean is of all its seeds


def test_settings_that_differ_are_in_the_label():
    rows = small_set() + trainings("dst-ee", 0.9, 0.9, 0.9, sparsity=0.9, c=0.1)
    table = make_table(rows)
    assert table.groups[-1][1] == ["DST-EE (c=0.001)", "DST-EE (c=0.1)", "RigL", "SET"]
    assert make_table(rows[:15] + rows[-3:], baseline="DST-EE (c=0.1)").baseline == "DST-EE (c=0.1)"
    for name in ("dst-ee", "DST-EE"):
        with pytest.raises(UsageError, match=rf"'{name}' may be any of DST-EE \(c=0.001\); DST-EE \(c=0.1\): pass one"):
            make_table(rows, baseline=name)
    table = make_table(rows, columns=["sparsity", "c"])
    assert [c.title for c in table.columns] == ["90 %, c=0.001", "90 %, c=0.1", "98 %, c=0.001"]
    assert table.cells["RigL", 1].rows == table.cells["RigL", 0].rows  # which has no c
    assert table.cells["DST-EE", 1].mean == pytest.approx(0.9)


def test_own_settings_and_labels_of_two_methods():
    rows = [
        *trainings("set", 0.5, 0.6, sparsity=0.9, label="x", method_settings={"beta": 0.5}),
        *trainings("set", 0.5, 0.6, sparsity=0.9, label="x", method_settings={"beta": 0.7}),
        *trainings("rigl", 0.5, 0.6, sparsity=0.9, label="x"),
    ]
    assert make_table(rows).labels == ["x (RigL)", "x (SET, beta=0.5)", "x (SET, beta=0.7)"]


def test_several_data_sets_have_columns_of_their_own():
    rows = (
        small_set()
        + trainings("rigl", 0.8, 0.7, 0.75, sparsity=0.9, data="mnist", epochs=9)
        + trainings("dense", 0.9, data="other")
    )
    table = make_table(rows)
    assert [c.title for c in table.columns] == ["digits, 90 %", "digits, 98 %", "mnist, 90 %", "other"]
    assert table.labels == ["dense", "GMP", "DST-EE", "RigL", "SET"]  # epochs differ between data sets, not within one
    assert ("dense", 2) not in table.cells and table.cells["dense", 3].mean == 0.9
    with pytest.raises(UsageError, match=r"several data sets \(digits, mnist, other\): pass --columns data,sparsity or --only"):
        make_table(rows, columns=["sparsity"])
    assert len(make_table(trainings("dense", 0.9, 0.8)).columns) == 1


def test_other_scores():
    rows = [replace(row, result=replace(row.result, scores={"auc": 1.0 - row.result.accuracy})) for row in small_set()[:6]]
    table = make_table(rows, score="auc", baseline="SET")
    assert table.cells["RigL", 0].comparison.mean == pytest.approx(-0.04 / 3)
    assert sheets(table)[0].header[1] == "auc %" and footer(table)[0].startswith("auc in %")


# --- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"baseline": "rgil"},
            r"'rgil' is not in the runs \(did you mean 'RigL'\?\), which have dense, GMP, DST-EE, RigL, SET",
        ),
        ({"baseline": "GMP"}, r"the baseline GMP has no runs at 98 %, where others have"),
        ({"score": "acuracy"}, r"no run has the score 'acuracy' \(did you mean 'accuracy'\?\), but accuracy"),
        ({"columns": ["epoch"]}, r"--columns: no run has a setting 'epoch' \(did you mean 'epochs'\?\)"),
    ],
)
def test_names_that_are_not_there(options, reason):
    with pytest.raises(UsageError, match=reason):
        make_table(small_set(), **options)


def test_runs_that_cannot_be_compared():
    rows = small_set()
    with pytest.raises(
        UsageError, match=r"^SET at 98 % and RigL at 98 % cannot be paired: SET at 98 % has no seed 1, which RigL"
    ):
        make_table(
            [row for row in rows if (row.method, row.seed, row.setting("sparsity")) != ("set", 1, 0.98)], baseline="rigl"
        )
    assert make_table(rows[1:]).cells["RigL", 0].mean == pytest.approx(0.94)  # without a baseline nothing is paired
    with pytest.raises(UsageError, match="RigL: runs/rigl and runs/rigl both have seed 1, of the same settings"):
        make_table([*rows, replace(rows[1], result=replace(rows[1].result, digest="other"))])
    with pytest.raises(
        UsageError, match=r"not trained on the same data, though both name digits \(their data_digest differs\)"
    ):
        make_table([*rows, training("static", 0, 0.5, sparsity=0.9, made_by={**MADE_BY, "data_digest": "d2"})])
    with pytest.raises(UsageError, match=r"SET, seed 1 in runs/set has no score 'auc': leave"):
        make_table(
            [training("set", 0, 0.5, sparsity=0.9, scores={"auc": 0.5}), training("set", 1, 0.5, sparsity=0.9)], score="auc"
        )
    with pytest.raises(UsageError, match="no rows"):
        make_table([])


# --- formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "write"), [("table.md", as_markdown), ("table.csv", as_csv), ("table.tex", as_latex)])
def test_snapshots(name, write):
    assert write(make_table(small_set(), baseline="rigl")) == (SNAPSHOTS / name).read_text()


def test_csv_has_all_numbers_unrounded():
    import csv
    import io

    table = make_table(small_set(), baseline="rigl", notes=["c was chosen"])
    lines = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert len(lines) == len(table.cells) == 9
    for line in lines:
        cell = table.cells[line["label"], [0.9, 0.98].index(float(line["sparsity"]))]
        assert float(line["mean"]) == cell.mean and float(line["std"]) == cell.std and line["notes"] == "c was chosen"
        assert (line["best"], line["comparisons"], line["baseline"], line["diverged"]) == (
            str(int(cell.best)), "7", "RigL", str(len(cell.diverged))
        )  # fmt: skip
        if cell.comparison is None:
            assert line["label"] == "RigL" and line["p"] == line["low"] == line["verdict"] == ""
        else:
            low, high = cell.comparison.interval or ("", "")
            expected = (cell.comparison.mean, low, high, cell.comparison.p, cell.corrected)
            assert tuple(line[name] for name in ("difference", "low", "high", "p", "p_holm")) == tuple(map(str, expected))


HOSTILE = "a_b & 50% {x} $y$ #1 ~^ \\end|*z*`<b>\n\x1b[31m"


def test_labels_are_escaped():
    rows = [
        *trainings("set", 0.5, 0.6, sparsity=0.9, label=HOSTILE),
        *trainings("rigl", 0.5, 0.7, sparsity=0.9, label="[h](i) -1"),
    ]
    table = make_table(rows, baseline=HOSTILE)
    latex, markdown = as_latex(table), as_markdown(table)
    assert "\x1b" not in latex + markdown
    assert r"a_b & 50\%".replace("_", r"\_").replace("&", r"\&") in latex
    assert r"\{x\} \$y\$ \#1 \textasciitilde{}\textasciicircum{} \textbackslash{}end\textbar{}*z*`$<$b$>$" in latex
    assert "\n{}[h](i) $-$1 & " in latex and r"[h\](i) -1" in markdown
    assert r"a_b & 50% {x} $y$ #1 ~^ \\end\|\*z\*\`\<b>" in markdown
    rows_of_it = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows_of_it} == {13} and len({len(line) for line in rows_of_it}) == 1


@pytest.mark.parametrize("value", ["x\n|", "", [1, 2], True, 1e308, 1 << 63, -1])
@pytest.mark.parametrize("name", ["sparsity", "data", "c", "hidden"])
def test_settings_that_no_training_has_are_shown_all_the_same(name, value):
    """Files of results are not believed: what stands there as a setting may be anything that is plain."""
    rows = small_set()
    rows[0] = replace(rows[0], settings={**rows[0].settings, name: value})
    rows = parse_rows(dump_rows(rows))
    table = make_table(rows)
    assert all(len(write(table)) > 500 for write in (as_markdown, as_csv, as_latex))
    assert only(rows, ["method=set"]) and make_table(rows, columns=["data", name])


def test_what_is_said_of_the_data_stands_in_the_footer(monkeypatch):
    monkeypatch.setitem(DATA_SETS, "digits", replace(DATA_SETS["digits"], note="compressed again"))
    table = make_table(small_set())
    assert footer(table)[-1] == "Data: digits (compressed again). Made with dstee 0.1.0, torch 2.13.0."
    assert "digits (compressed again)" in as_csv(table)


def test_footer_and_one_seed():
    rows = [*trainings("set", 0.5, sparsity=0.9), *trainings("rigl", 0.75, sparsity=0.9, made_by={"dstee": "0.2.0"})]
    table = make_table(rows, baseline="set", notes=["c of DST-EE: 0.1"])
    lines = footer(table)
    assert (
        lines[0] == "Accuracy on the test set in %: nothing is known of the spread over 1 seed (0)."
        and "c of DST-EE: 0.1." in lines
    )
    assert (
        "Holm's correction for 0 comparisons" in lines[1]
        and "dstee 0.1.0, torch 2.13.0; dstee 0.2.0, torch unknown" in lines[-1]
    )
    cells = sheets(table)[0].lines[0]
    assert [text.text for text in cells[:5]] == ["RigL", "75.00", "+25.00", "-", "one seed: no test"]
    assert json.dumps(table.notes) == '["c of DST-EE: 0.1"]'
