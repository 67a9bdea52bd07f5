"""The command line: options that cannot be used, the tasks that it makes, and a small run from end to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cli, compare, options, plan, results_file, sweep
from dstee import cli as dstee_cli

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
WRONG = """--density 0
--swap 2
--repeats 1
--threads 0
--against nobody
--plugin no_such
--shapes x
--shapes mlp --from-model a:b
--op step --shapes gpt2
--resume a.json --json b.json
--from-model nothing
--from-model no_such_module:make
--op host --from-model a:b
--op drop_grow scaling --from-model a:b
report /nowhere/a.json
compare /nowhere/a.json /nowhere/b.json
--html a.html compare a.json b.json
--threads 1 report a.json
--from-model a:b ranks"""


@pytest.mark.parametrize("words", WRONG.splitlines())
def test_wrong_options_are_told_in_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("dstee: error:")


@pytest.mark.parametrize(
    "words",
    [
        "compare a",
        "compare",
        "dance",
        "report",
        "ranks --from-model a:b",
        "compare a b --html c",
        "model x",
        "--op host compare a b",
    ],
)
def test_what_the_parser_refuses(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    for main, before in ((cli.main, []), (dstee_cli.main, ["bench"])):
        with pytest.raises(SystemExit) as ended:
            main([*before, *words.split()])
        told = capsys.readouterr()
        assert ended.value.code == 2 and "error: " in told.err.splitlines()[-1] and not told.out


OWN = {
    "compare": {"--margin", "--all"}, "report": {"--html"}, "model": {"--gpu", "--measured", "--shapes", "--density"},
    "ranks": {"--shapes", "--dtype", "--density", "--every", "--threads", "--limit", "--largest", "--json", "--out", "--ranks",
              "--methods", "--updates", "--model-only", "--link", "--all-reduce", "--tokens", "--flops", "--step-seconds"},
}  # fmt: skip


@pytest.mark.parametrize("command", OWN)
def test_the_help_of_a_command_shows_its_own_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for main, before in ((cli.main, []), (dstee_cli.main, ["bench"])):
        with pytest.raises(SystemExit, match="0"):
            main([*before, command, "--help"])
        shown = capsys.readouterr().out
        assert set(re.findall(r"(?<![\w-])--[a-z-]+", shown)) == OWN[command] | {"--help"}
        assert f"bench {command} " in shown.splitlines()[0]
    assert ("exit status: 0" in shown) == (command == "compare")


def test_the_help_of_bench_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        dstee_cli.main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert "--from-model" in shown and "--margin" not in shown and "--gpu" not in shown
    assert all(re.search(rf"^    {command} ", shown, re.MULTILINE) for command in OWN)


def test_options_before_a_command_reach_it() -> None:
    args = cli.make_parser().parse_args(["--html", "x.html", "--shapes", "mlp", "--threads", "2", "ranks", "--density", "0.5"])
    assert (args.shapes, args.threads, args.density, args.limit) == (["mlp"], 2, [0.5], 300.0)
    args = cli.make_parser().parse_args(["--html", "x.html", "report", "a.json"])
    assert args.html == Path("x.html") and options.misplaced(args) is None


def test_slow_contenders_run_once(capsys: pytest.CaptureFixture[str]) -> None:
    args = cli.make_parser().parse_args(["--shapes", "mlp", "--density", "0.1", "0.05"])
    updates = [t for t in plan.tasks(args) if t["op"] == "drop_grow"]
    assert "reference" in updates[0]["contenders"] and updates[1]["skipped"]["reference"].startswith("slow")


def test_the_command_makes_tables_json_and_html(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    real = sweep.run_row
    small = {"flush_bytes": 1 << 16, "roof_bytes": 1 << 22}
    monkeypatch.setattr(sweep, "run_row", lambda task, *rest: real({**task, **small}, *rest))
    words = ["bench", "--shapes", "3000", "--backends", "reference", "--against", "torch.topk", "SGD foreach + masks",
             "--repeats", "7", "--threads", "1", "--json", str(tmp_path / "a.json")]  # fmt: skip
    assert dstee_cli.main([*words, "--html", str(tmp_path / "a.html")]) == 0
    made = results_file.read(tmp_path / "a.json")
    assert made["complete"] and [r["key"]["op"] for r in made["rows"]] == ["masked_sgd", "drop_grow"]
    assert made["rows"][1]["contenders"]["torch.topk"]["amortised_ms"] > 0
    assert "<svg" in (tmp_path / "a.html").read_text()
    shown = capsys.readouterr().out
    assert "torch.topk" in shown and "3,008 weights" in shown

    words[-1] = str(tmp_path / "b.json")
    assert dstee_cli.main([*words, "--op", "drop_grow"]) == 0
    verdicts = compare.compare(made, results_file.read(tmp_path / "b.json"), margin=1.0)
    assert len(verdicts) == 2 and {v.verdict for v in verdicts} <= {"same", "cannot tell"}, verdicts
    assert dstee_cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--margin", "1"]) in (0, 3)
    assert dstee_cli.main(["bench", "report", str(tmp_path / "a.json")]) == 0
    json.loads((tmp_path / "b.json").read_text())


def test_the_options_cost_nothing() -> None:
    code = (
        "import sys, argparse, bench.cli; bench.cli.add_arguments(argparse.ArgumentParser()); "
        "assert not {'torch', 'numpy', 'dstee'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, timeout=60)
