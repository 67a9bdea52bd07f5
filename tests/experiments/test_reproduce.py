"""The paper's experiments as grid files: that they say what the paper and the presets say, and what the command does."""

import dataclasses
import json

import pytest

from dstee import cli
from dstee._console import UsageError
from dstee.experiments.config import Config
from dstee.experiments.data import DATA_SETS
from dstee.experiments.reproduce import run as module
from dstee.experiments.reproduce.command import EXPERIMENTS, PROTOCOLS
from dstee.experiments.reproduce.cost import cost_lines, seconds_of_an_epoch
from dstee.experiments.reproduce.run import SOURCES, read_protocol
from dstee.experiments.sweep.check import load_all
from dstee.experiments.sweep.grid import parse_grid
from dstee.methods.presets import preset

TINY = """# A table of nothing.
differs = ["all of it"]
[settings]
hidden = [4]
epochs = 1
[grid]
method = ["dense", "rigl"]
"""


def configs(name, protocol):
    return [run.config for run in read_protocol(name, protocol).runs]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_protocol_can_be_read_and_says_what_differs(name, protocol):
    grid = read_protocol(name, protocol)
    text = grid.text.decode()
    assert text.startswith("# ") and len(grid.differs) >= 4 and all(len(line) < 200 for line in grid.differs)
    assert any("DST-EE: c = 1e-3" in line or "c from 0" in line for line in grid.differs), "the paper does not say its c"
    for run in grid.runs:
        assert run.config.data in SOURCES and run.config.data in DATA_SETS
        assert run.config.keep_checkpoints == 1 and run.config.device == "cpu"
    assert {run.config.device for run in read_protocol(name, protocol, "cuda").runs} == {"cuda"}


def test_an_unknown_experiment_is_refused():
    with pytest.raises(UsageError, match="unknown experiment 'table9', expected one of table1"):
        read_protocol("table9", "full")


@pytest.mark.parametrize("name", ["table1", "figure3", "table2"])
def test_full_trains_as_the_paper_says(name):
    for config in configs(name, "full"):
        epochs = {"table2": (100, 150)}.get(name, (160, 250))
        assert config.epochs in epochs and config.batch_size == 128 and config.distribution in ("erk", "uniform")
        assert (config.optimizer, config.lr, config.lr_schedule) == ("sgd", 0.1, "cosine")
    assert {config.seed for config in configs(name, "full")} == {0, 1, 2}


def test_table_1_has_the_rows_and_columns_of_the_paper():
    found = configs("table1", "full")
    cells = {(c.data, c.model, c.sparsity) for c in found if c.method == "rigl"}
    assert cells == {(d, m, s) for d in ("cifar10", "cifar100") for m in ("vgg19", "resnet50-cifar") for s in (0.9, 0.95, 0.98)}
    rows = {(c.method, c.epochs) for c in found if c.model == "vgg19"}
    methods = ("dense", "snip", "grasp", "synflow", "str", "sis", "deepr", "set", "rigl", "dst-ee")
    assert rows == {*((method, 160) for method in methods), ("dst-ee", 250)}
    assert {c.method for c in found if c.model == "resnet50-cifar"} == set(methods) - {"deepr", "set"}
    assert len(found) == 3 * 2 * (1 + 3 * 10 + 1 + 3 * 8)


@pytest.mark.parametrize(
    ("name", "label", "method", "of"),
    [
        ("table1", "RigL", "rigl", "itop-cifar"),
        ("table1", "", "set", "set-itop-cifar"),
        ("table1", "", "dst-ee", "dst-ee-paper"),
        ("figure3", "", "dst-ee", "dst-ee-paper"),
        ("table2", "RigL-ITOP", "rigl", "itop-imagenet"),
        ("table2", "", "dst-ee", "dst-ee-paper-imagenet"),
        ("table2", "", "snfs", "snfs-cifar"),
        ("table2", "MEST", "mest", "mest-imagenet"),
    ],
)
def test_full_uses_the_numbers_of_the_presets(name, label, method, of):
    wanted, found = preset(of), [c for c in configs(name, "full") if (c.label, c.method) == (label, method)]
    assert found
    for config in found:
        every = wanted.every * (1_281_167 // 128 if wanted.in_epochs else 1)
        assert (config.every, config.stop_fraction) == (every, wanted.stop)
        assert config.distribution == wanted.distribution
        for key, own in (("initial", "drop_fraction"), ("fraction", "drop_fraction"), ("floor", "drop_floor")):
            if hasattr(wanted.drop, key) and method != "mest":  # which does not use it
                assert getattr(config, own) == getattr(wanted.drop, key)
        made = config.make(method)
        assert dataclasses.replace(made, **({"c": wanted.method.c} if method == "dst-ee" else {})) == wanted.method


def test_rigl_on_imagenet_updates_after_as_many_images_as_its_preset():
    (config, *_) = [c for c in configs("table2", "full") if c.label == "RigL"]
    wanted = preset("rigl-imagenet")
    assert config.every * config.batch_size == wanted.every * 4096
    assert (config.stop_fraction, config.drop_fraction, config.drop_floor) == (wanted.stop, wanted.drop.initial, 0.0)


def test_graphs_are_trained_50_epochs_and_admm_60():
    for name in ("table3", "table4"):
        for protocol in PROTOCOLS:
            found = configs(name, protocol)
            assert {(c.method == "admm", c.epochs, c.distribution) for c in found} == {
                (True, 60, "uniform"),
                (False, 50, "uniform"),
            }
            assert {c.sparsity for c in found if c.method != "dense"} == {0.8, 0.9, 0.98}
            assert len({c.seed for c in found}) >= 5


# --- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(module, "read_protocol", lambda *names: parse_grid(TINY.encode(), "tiny"))


def test_a_dry_run_says_what_differs_and_what_it_costs_and_makes_nothing(tiny, quiet_place, tmp_path, capsys):
    assert cli.main(["reproduce", "table1", "--dry-run", "--jobs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["table1, protocol lite: A table of nothing.", "differs  all of it"]
    assert lines[2].startswith("cost     2 runs of mlp on digits: about 0:00:0")
    assert lines[3].startswith("cost     about ") and "of one core in all" in lines[3]
    assert lines[-1] == "2 runs: 2 to be made" and not list(tmp_path.iterdir())


def test_missing_data_are_named_with_their_source_before_anything_else(quiet_place, tmp_path, capsys):
    assert cli.main(["reproduce", "table3", "--data-dir", str(tmp_path / "x")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "wiki_vote.npz" in err and "where they are had: wiki_vote: made of https://snap.stanford.edu" in err
    assert cli.main(["reproduce", "table1", "--protocol", "full"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "--data cifar10 needs" in err and "--data cifar100 needs" in err and "kriz/cifar.html" in err


def test_a_table_is_made_at_the_end(tiny, quiet_place, tmp_path, monkeypatch, capsys):
    def sweep(grid, options, loaded):
        for run in grid.runs:
            args = ["train", "--config", str(tmp_path / "c.json"), "--out", str(options.out / run.name)]
            (tmp_path / "c.json").write_text(json.dumps(run.config.to_dict()))
            assert cli.main(args) == 0
        return 0

    monkeypatch.setattr(module, "run_sweep", sweep)
    assert cli.main(["reproduce", "table1"]) == 0
    out = tmp_path / "runs" / "table1-lite"
    assert "| RigL" in (out / "table.md").read_text() and (out / "table.csv").exists()
    assert "\\begin{tabular}" in (out / "table.tex").read_text()
    assert "differs  all of it" in capsys.readouterr().out


# --- costs ---------------------------------------------------------------------------------------------------------------


def test_costs_grow_with_epochs_and_runs(monkeypatch):
    grid = parse_grid(TINY.encode(), "tiny")
    loaded = load_all(grid.runs, None)
    monkeypatch.setattr("dstee.experiments.reproduce.cost.seconds_of_an_epoch", lambda config, data: 3600.0)
    assert cost_lines(grid.runs, loaded, 2)[:2] == [
        "cost     2 runs of mlp on digits: about 1:00:00 each on 1 core",
        "cost     about 2:00:00 of one core in all, 1:00:00 with 2 at once on cores of their own",
    ]
    longer = parse_grid(TINY.replace("epochs = 1", "epochs = 20\nthreads = 2").encode(), "tiny")
    assert cost_lines(longer.runs, loaded, 1)[:2] == [
        "cost     2 runs of mlp on digits: about 20:00:00 each on 2 cores",
        "cost     about 80 hours of one core in all, 40 hours with 1 at once on cores of their own",
    ]


def test_a_step_of_a_large_network_is_timed_with_few_samples(monkeypatch):
    """Within a factor of what whole batches say, on a network small enough for both."""
    config = Config.resolve({"hidden": [600, 600], "method": "dense", "batch_size": 256})
    (dataset,) = load_all(parse_grid(TINY.encode(), "tiny").runs, None).values()
    whole = seconds_of_an_epoch(config, dataset)
    monkeypatch.setattr("dstee.experiments.reproduce.cost._LARGE", 10)
    few = seconds_of_an_epoch(config, dataset)
    assert 0 < whole < 20 and whole / 10 < few < 200 * whole
