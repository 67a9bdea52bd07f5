"""A run folder that dstee 0.1.0 left when it was killed (dst-ee on digits, at step 14 of 20) is read and finished."""

import json
import shutil
from pathlib import Path

import pytest
from support.command_server import digests

from dstee import cli
from dstee.experiments import checkpoint, plot, records
from dstee.experiments.config import Config
from dstee.experiments.data import load
from dstee.experiments.run_folder import read_manifest
from dstee.experiments.trial import Trial

KILLED = Path(__file__).parent / "data" / "run-0.1.0"
CHECKPOINT = KILLED / "dst-ee-seed0" / "checkpoint-0000000012.dst"


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(KILLED, tmp_path / "run"))


def test_the_checkpoint_loads_with_the_digest_that_0_1_0_computed():
    assert checkpoint.digest(checkpoint.load(CHECKPOINT)) == "e4725af88f68d046827500ab31509db3"


def test_the_training_goes_on_from_the_state_that_was_saved():
    tree = checkpoint.load(CHECKPOINT)
    trial = Trial(Config.resolve(read_manifest(KILLED)["config"]), "dst-ee", 0, load("digits", None))
    trial.restore(CHECKPOINT, tree)
    assert checkpoint.digest(trial.saved()) == checkpoint.digest(tree)


def test_the_run_is_finished(run, tmp_path, capsys):
    assert cli.main(["train", "--out", str(run), "--resume"]) == 0
    assert "continues at step 12 of 20" in capsys.readouterr().err
    config = str(KILLED / "config.json")
    assert cli.main(["train", "--config", config, "--out", str(tmp_path / "straight")]) == 0
    capsys.readouterr()
    assert [p.name for p in run.glob("*/*.dst")] == ["final.dst"]
    metrics = "dst-ee-seed0/metrics.jsonl"
    if json.loads((KILLED / metrics).read_bytes().splitlines()[2]) == (
        json.loads((tmp_path / "straight" / metrics).read_bytes().splitlines()[2])
    ):  # this machine's matrix products round as those of the machine that wrote the fixture
        assert digests(run) == digests(tmp_path / "straight") == records.read_digests(run)


def test_the_curves_are_drawn(run, capsys):
    _, curves = plot.read_run(run)
    assert [step for step, _ in curves["dst-ee"].updates[0]] == [4, 8, 12]
    assert cli.main(["plot", str(run)]) == 0
    assert "picture" in capsys.readouterr().out and (run / "curves.png").exists()
