"""``dstee table`` from its options to what it prints, and the choice of rows before."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.command_server import TINY
from support.result_rows import small_set, training, trainings

from dstee import cli
from dstee._console import UsageError
from dstee.experiments.results.choice import choose, only
from dstee.experiments.results.file import dump_rows

pytestmark = pytest.mark.usefixtures("quiet_place")


@pytest.fixture
def file(quiet_place):
    Path("r.json").write_bytes(dump_rows(small_set(), "dstee sweep grid.toml"))
    return "r.json"


def test_runs_become_a_table_and_a_file_that_says_the_same(capsys):
    assert cli.main(["train", *TINY, "--compare", "set,rigl,dense", "--seeds", "2", "--out", "runs/0.9"]) == 0
    capsys.readouterr()
    tables = {}
    for name in ("md", "csv", "latex"):
        assert cli.main(["table", "runs", "--baseline", "set", "--format", name]) == 0
        tables[name] = capsys.readouterr().out
    assert "difference to SET" in tables["md"] and r"\toprule" in tables["latex"] and tables["csv"].startswith("group,label,")
    assert cli.main(["table", "runs", "--format", "json", "--output", "r.json"]) == 0
    assert capsys.readouterr().out == "table  r.json\n"
    held = json.loads(Path("r.json").read_text())
    assert held["command"] == "dstee table runs --format json" and len(held["rows"]) == 6 and held["rows"][0]["epochs"]
    for name in ("md", "latex"):
        assert cli.main(["table", "r.json", "--baseline", "set", "--format", name]) == 0
        assert capsys.readouterr().out == tables[name]
    assert cli.main(["table", "r.json", "runs/0.9", "--baseline", "SET", "--output", "t.md"]) == 0
    assert Path("t.md").read_text() == tables["md"]
    capsys.readouterr()


def test_a_results_file_keeps_its_command_unless_told(file, capsys):
    for options, command in (([], "dstee sweep grid.toml"), (["--command", "make all"], "make all")):
        assert cli.main(["table", file, "--format", "json", "--no-curves", *options]) == 0
        held = json.loads(capsys.readouterr().out)
        assert held["command"] == command and not any("epochs" in row for row in held["rows"])
    assert cli.main(["table", file, "--format", "json", "--only", "method=rigl", "--only", "sparsity=0.98"]) == 0
    assert [row["seed"] for row in json.loads(capsys.readouterr().out)["rows"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["nowhere"], "there is no nowhere: name run folders"),
        (["r.json", "--baseline", "RigI"], r"the baseline 'RigI' is not in the runs \(did you mean '(RigL|rigl)'\?\)"),
        (["r.json", "--score", "auk"], "no run has the score 'auk', but accuracy"),
        (["r.json", "--columns", "sparsty"], r"--columns: no run has a setting 'sparsty' \(did you mean 'sparsity'\?\)"),
        (["r.json", "--only", "sparsity"], "--only takes SETTING=VALUE or SETTING=VALUE,VALUE, got 'sparsity'"),
        (["r.json", "--only", "metod=set"], r"--only: no run has a setting 'metod' \(did you mean 'method'\?\)"),
        (["r.json", "--only", "method=sat"], r"--only: no run has method=sat \(did you mean 'set'\?\), but rigl, set"),
        (["r.json", "--choose", "cc"], "--choose: no run has a setting 'cc'"),
        (["r.json", "--choose", "c"], "--choose c: no trainings differ in c alone"),
        (
            ["r.json", "--choose", "sparsity"],
            "has no validation score, and choosing by the test set would make its accuracy no",
        ),
        (["r.json", "--no-curves"], "--no-curves and --command are for --format json"),
        (["r.json", "--command", "x"], "--no-curves and --command are for --format json"),
        (
            ["r.json", "--format", "json", "--baseline", "set"],
            "--format json has the rows: --baseline, --columns and --score are",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(file, capsys, options, reason):
    assert cli.main(["table", *options, "--output", "t.md"]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"dstee: error: [^\n]+\n", captured.err) and re.search(reason, captured.err)
    assert captured.out == "" and not Path("t.md").exists()


def test_a_place_that_cannot_be_written_is_said(file, capsys):
    assert cli.main(["table", file, "--output", "nowhere/t.md"]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_the_page_s_commands_are_understood():
    page = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
    commands = re.findall(r"^dstee (.*?)(?:  +#.*)?$", page.split("```")[1], re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        assert cli.make_parser().parse_args(command.split()).command == "table"


# --- rows that stay ------------------------------------------------------------------------------------------------------


def test_only_rows_of_some_values():
    rows = small_set()
    assert {row.method for row in only(rows, ["c=1e-3"]) if row.setting("c") is None} == {"dense", "gmp", "rigl", "set"}
    assert {row.setting("sparsity") for row in only(rows, ["sparsity=0.90"])} == {0.9, None}
    assert {row.label for row in only(rows, ["label=GMP,dense"])} == {"GMP", "dense"}
    wide = [replace(row, settings={**row.settings, "hidden": [300, 100]}) for row in rows[:2]] + rows[2:3]
    assert len(only(wide, ["hidden=300,100"])) == 3 and len(only(wide, ["hidden=300,100", "data=digits"])) == 3
    assert only(rows, []) == rows


def validated(c, pairs, **more):
    return [
        training("dst-ee", seed, accuracy, sparsity=more.get("sparsity", 0.9), c=c, scores={"validation": score})
        for seed, (accuracy, score) in enumerate(pairs)
    ]


def test_values_are_chosen_by_the_validation_score_not_by_the_test():
    low, middle, high = (
        validated(0.01, [(0.5, 0.9), (0.5, 0.7)]),
        validated(0.1, [(0.99, 0.6), (0.99, 0.8)]),
        validated(1.0, [(0.6, 0.75), (0.6, 0.85)]),
    )
    other = validated(0.1, [(0.4, 0.4), (0.4, 0.4)], sparsity=0.98)
    static = trainings("static", 0.5, 0.5, sparsity=0.9)
    rows, notes = choose([*static, *high, *low, *middle, *other], "c")
    assert rows == [*static, *high, *other]  # .8 .8 .7: of equal ones the first
    assert notes == ["Chosen by validation: c of DST-EE, digits, 90 %: 1.0 (of 1.0, 0.01, 0.1)"]
    rows, notes = choose([*low, *middle, *validated(0.1, [(0.4, 0.3), (0.4, 0.3)], sparsity=0.98),
                          *validated(0.01, [(0.4, 0.3), (0.4, 0.2)], sparsity=0.98)], "c")  # fmt: skip
    assert [(row.setting("sparsity"), row.setting("c")) for row in rows[::2]] == [(0.9, 0.01), (0.98, 0.1)] and len(notes) == 2


def test_labels_of_values_give_way_to_the_method():
    rows, notes = choose(
        [
            replace(row, label=f"c={row.setting('c')}")
            for c, v in ((0.1, 0.5), (0.2, 0.6))
            for row in validated(c, [(0.5, v)] * 2)
        ],
        "c",
    )
    assert {(row.label, row.setting("c")) for row in rows} == {("DST-EE", 0.2)} and "c of DST-EE, digits, 90 %: 0.2" in notes[0]


def test_a_setting_of_the_method_can_be_chosen():
    rows = [
        training("set", seed, 0.5, sparsity=0.9, method_settings={"beta": beta, "more": 1}, scores={"validation": beta})
        for beta in (0.5, 0.7) for seed in (0, 1)
    ]  # fmt: skip
    kept, notes = choose(rows, "beta")
    assert kept == rows[2:] and "beta of SET" in notes[0]


def test_a_value_that_diverged_is_the_last_choice():
    gone = [replace(row, result=replace(row.result, accuracy=None, diverged_at=3)) for row in validated(0.1, [(0.5, 0.9)] * 2)]
    kept, _ = choose([*gone, *validated(0.2, [(0.5, 0.1)] * 2)], "c")
    assert {row.setting("c") for row in kept} == {0.2}


def test_choices_that_would_not_be_fair_are_refused():
    rows = validated(0.1, [(0.5, 0.9)] * 3)
    with pytest.raises(UsageError, match=r"--choose c: DST-EE with c=0.2 has the seeds 0, 1, others have 0-2: train the same"):
        choose([*rows, *validated(0.2, [(0.5, 0.9)] * 2)], "c")
    with pytest.raises(
        UsageError, match=r"DST-EE, seed 0 in runs/dst-ee has no validation score, .*: train with --validation N"
    ):
        choose([*rows, *trainings("dst-ee", 0.5, 0.5, 0.5, sparsity=0.9, c=0.2)], "c")


def test_a_choice_stands_in_the_footer(capsys):
    rows = [*validated(0.1, [(0.5, 0.9)] * 2), *validated(0.2, [(0.6, 0.8)] * 2)]
    Path("r.json").write_bytes(dump_rows(rows))
    assert cli.main(["table", "r.json", "--choose", "c"]) == 0
    shown = capsys.readouterr().out
    assert "- Chosen by validation: c of DST-EE, digits, 90 %: 0.1 (of 0.1, 0.2).\n" in shown and "50.00 ± 0.00" in shown
