"""The progress bar on terminals of any width, and what is said at the end."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from dstee import cli
from dstee.experiments.config import Config
from dstee.experiments.progress import Progress


def shown(width):
    """The last line that a terminal of that width has seen."""
    out = io.StringIO()
    progress = Progress(Config.resolve({"compare": "dst-ee,one-shot", "seeds": 2}), print)
    progress.console = Console(file=out, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    trial = SimpleNamespace(history=[{"exploration": 0.1}], accuracy=lambda: 0.9312)
    training = SimpleNamespace(method="one-shot", title="seed 3", total=100, step_number=30, trials=[trial])
    with progress:
        progress.start(training)
        progress.advance(training, 0.1234)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").split("\n")
    assert all(len(line) <= width for line in lines)
    return next(line for line in reversed(lines) if line.strip())


@pytest.mark.parametrize("width", [30, 40, 60, 80, 89, 90, 120])
def test_the_methods_name_and_the_loss_stay_visible(width):
    line = shown(width)
    assert line.startswith("one-shot") and "loss" in line, line
    assert width < 40 or line.startswith("one-shot seed"), line
    assert width < 60 or ("accuracy 93.12 %" in line and "seed 3" in line), line
    assert ("━" in line) == (width >= 90)


def test_where_all_diverge_at_once_there_is_a_table_and_nothing_to_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = ["--train-limit", "640", "--hidden", "4", "--every", "9", "--epochs", "1"]
    assert cli.main(["train", "--data", "digits", "--out", "run", "--lr", "1e30", "--method", "static", *tiny]) == 0
    out, err = capsys.readouterr()
    assert "loss is not finite at step" in err and "error" not in err
    assert re.search(r"static +1 of 1 diverged( +-){6}\n", out) and not (tmp_path / "run" / "curves.png").exists()
    assert "picture  none: every training diverged before there was anything to draw" in out
    assert '"diverged_at"' in (tmp_path / "run" / "results.json").read_text()


def test_what_has_no_room_goes_whole():
    assert "R 0.100" in shown(80) and "R 0.1" not in shown(60)
    assert shown(50).rstrip().endswith("acc 93.12 %") and shown(40).rstrip().endswith("loss 0.1234")
