"""Methods and data sets that others register are on the command line, in the files and in the picture."""

import json
from dataclasses import dataclass

import pytest
import torch
from support.command_server import TINY

from dstee import cli, methods
from dstee._console import UsageError
from dstee.experiments import data
from dstee.experiments.config import Config
from dstee.experiments.data import DATA_SETS, Dataset, Source
from dstee.experiments.run_folder import read_manifest
from dstee.experiments.trial import Trial


@pytest.fixture
def halved():
    """A method of somebody else: DST-EE with half the bonus; ``c`` and ``eps`` are settings, ``half`` is not."""
    before = dict(methods.METHODS)

    @methods.register
    @dataclass(frozen=True)
    class Halved(methods.DSTEE):
        half: float = 0.5
        name = "Halved"
        key = "halved-1"

        def bonus(self, t, round):
            return self.half * super().bonus(t, round)

    yield Halved
    methods.METHODS.clear()
    methods.METHODS.update(before)


def test_a_registered_method_trains_and_is_drawn(halved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "halved-1" in capsys.readouterr().out
    assert cli.main(["train", "--method", "halved-1", "--out", "a", "--c", "0.5", *TINY]) == 0
    assert "Halved" in capsys.readouterr().out
    assert cli.main(["train", "--method", "halved-1", "--out", "a", "--resume"]) == 0
    assert cli.main(["plot", "a"]) == 0
    assert cli.main(["train", "--method", "halved-1", "--out", "a", "--overwrite", "--c", "0.5", *TINY]) == 0


def test_a_method_gets_the_settings_that_bear_its_names(halved):
    config = Config.resolve({"method": "halved-1", "c": 0.25, "order": "replace"})
    sparse = Trial(config, "halved-1", 0, data.load("digits", None)).sparse
    assert sparse.method == halved(c=0.25, eps=1.0, half=0.5, order="replace")


def test_a_registered_data_set_is_loaded_with_its_own_settings(tmp_path, monkeypatch, capsys):
    g = torch.Generator().manual_seed(0)
    points = Dataset("points", torch.randn(64, 6, generator=g), torch.arange(64) % 3, torch.randn(9, 6), torch.arange(9) % 3)
    monkeypatch.setitem(DATA_SETS, "points", Source(lambda data_dir: points, {"epochs": 3, "batch_size": 16, "hidden": (8,)}))
    out = tmp_path / "a"
    assert cli.main(["train", "--data", "points", "--sparsity", "0.5", "--out", str(out)]) == 0
    assert "64 training and 9 test images" in capsys.readouterr().out
    assert read_manifest(out)["config"]["epochs"] == 3
    assert json.loads((out / "results.json").read_text())["results"][0]["numel"] == 6 * 8 + 8 * 10


def test_exploration_is_by_c_unless_c_rel_is_given():
    """Runs by c are compared with the settings that they had before there was a c_rel."""
    sample = DATA_SETS["digits"].load(None)
    by_c, by_c_rel = Config.resolve({}), Config.resolve({"c_rel": 0.25, "eps": 2.0})
    assert Trial(by_c, "dst-ee", 0, sample).sparse.method == methods.DSTEE(c=1e-3)
    assert Trial(by_c_rel, "dst-ee", 0, sample).sparse.method == methods.DSTEE(c_rel=0.25, eps=2.0)
    assert "c_rel" not in by_c.identity() and "c" not in by_c_rel.identity()
    assert Config.resolve(by_c_rel.to_dict()) == by_c_rel
    with pytest.raises(UsageError, match="c and c_rel are both given"):
        Config.resolve({"c": 0.01, "c_rel": 0.1})
