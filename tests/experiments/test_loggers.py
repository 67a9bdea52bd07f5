"""Loggers: event files read back with TensorBoard's reader, W&B as a module that remembers, and what fails is said once."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
from experiments.test_train import DATA, Log, make_config, metrics, outcome, run

from dstee import cli
from dstee._console import UsageError
from dstee.experiments import train
from dstee.experiments.config import Config
from dstee.experiments.loggers import scalars


class Cut(Exception):
    pass


def cut_at(config, folder, *steps):
    """Trains in processes that end without a warning after so many steps, then to the end."""

    def after(limit):
        def count(done):
            if done == limit:
                raise Cut

        return count

    folder.mkdir()
    for limit in steps:
        with pytest.raises(Cut):
            train.run_trials(config, DATA, folder, Log(), after_step=after(limit))
    return train.run_trials(config, DATA, folder, Log())


def test_the_numbers_of_a_step():
    update = {
        "kind": "update", "method": "rigl", "seed": 0, "step": 6, "round": 3, "exploration": 0.2, "churn": 0.1,
        "exploration_limit": 0.5, "layers": [0.1], "dead_units": 0.25,
    }  # fmt: skip
    epoch = {
        "kind": "epoch", "method": "rigl", "seed": 0, "step": 6, "epoch": 1, "loss": None, "accuracy": 0.5, "exploration": 0.2,
        "scores": {"validation": 0.4},
    }  # fmt: skip
    assert scalars([update, epoch]) == {
        "masks/exploration": 0.2, "masks/churn": 0.1, "masks/exploration_limit": 0.5, "masks/dead_units": 0.25,
        "test/accuracy": 0.5, "test/validation": 0.4, "epoch": 1.0,
    }  # fmt: skip


# --- TensorBoard ---------------------------------------------------------------------------------------------------------


def events(folder):
    """Points by name, as TensorBoard shows them."""
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    held = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    held.Reload()
    return {tag: [(e.step, e.value) for e in held.Scalars(tag)] for tag in held.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_every_point_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    config = make_config(compare="dense,rigl", seeds=1, log="tensorboard")
    bare, _ = run(make_config(compare="dense,rigl", seeds=1), tmp_path / "bare")
    logged = cut_at(config, tmp_path / "run", 24 + 8, 4)  # in RigL after step 8, of which a checkpoint has 5; and at 9
    assert outcome(logged) == outcome(bare)
    for name in ("dense-seed0", "rigl-seed0"):
        assert metrics(tmp_path / "run", name) == metrics(tmp_path / "bare", name)
    found = events(tmp_path / "run/rigl-seed0")
    assert [step for step, _ in found["masks/churn"]] == list(range(2, 17, 2))
    assert [step for step, _ in found["train/loss"]] == [step for step, _ in found["test/accuracy"]] == [6, 12, 18, 24]
    assert found["test/accuracy"][-1][1] == pytest.approx(bare[1].accuracy)
    assert [value for _, value in found["masks/exploration"]] == sorted(value for _, value in found["masks/exploration"])
    assert "masks/dead_units" in found and "masks/churn" not in events(tmp_path / "run/dense-seed0")


# --- W&B -----------------------------------------------------------------------------------------------------------------


class FakeRun:
    def __init__(self, options):
        self.options, self.points, self.finished = options, [], False

    def log(self, values, step):
        self.points.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module of that name: ``runs`` has what was begun."""
    module = ModuleType("wandb")
    module.runs, module.api = [], SimpleNamespace(api_key=None)
    module.init = lambda **options: module.runs.append(FakeRun(options)) or module.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_wandb_goes_on_under_the_same_id_with_every_point_once(tmp_path, wandb):
    cut_at(make_config(method="rigl", log="wandb"), tmp_path / "run", 8, 2)  # checkpoints at 5: at 8, then at 7
    first, second, third = wandb.runs
    assert first.options["id"] == second.options["id"] == third.options["id"]
    for one in wandb.runs:
        options = one.options
        assert (options["project"], options["group"], options["name"]) == ("dstee", "run", "rigl-seed0")
        assert options["resume"] == "allow" and options["mode"] == "offline" and options["config"]["sparsity"] == 0.6
        assert one.finished and options["dir"] == str(tmp_path / "run/rigl-seed0")
    steps = [step for one in wandb.runs for step, _ in one.points]
    assert steps == sorted({*range(2, 17, 2), 6, 12, 18, 24})
    assert not second.points and third.points[-1][1]["test/accuracy"] > 0
    wandb.api.api_key = "a key"
    run(make_config(method="rigl", log="wandb"), tmp_path / "other")
    assert "mode" not in wandb.runs[-1].options and wandb.runs[-1].options["id"] != first.options["id"]


def test_seeds_that_train_at_once_have_runs_of_their_own(tmp_path, wandb):
    run(make_config(method="rigl", seeds=2, batch_seeds=True, log="wandb"), tmp_path / "run")
    assert [one.options["name"] for one in wandb.runs] == ["rigl-seed0", "rigl-seed1"]
    assert all(one.options["reinit"] == "create_new" and len(one.points) == 10 and one.finished for one in wandb.runs)


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_logger_that_fails_is_said_once_and_ends_nothing(tmp_path, wandb, monkeypatch, where):
    def fail(*args, **options):
        raise RuntimeError("no network")

    monkeypatch.setattr(*((wandb, "init", fail) if where == "init" else (FakeRun, where, fail)))
    results, log = run(make_config(compare="set,rigl", seeds=1, log="wandb"), tmp_path / "run")
    assert len(results) == 2 and len(log.warnings) == 1
    assert log.warnings[0] == "logging to wandb failed and ends here, the training goes on: RuntimeError: no network"


# --- asking for it -------------------------------------------------------------------------------------------------------


def test_log_is_a_setting_that_may_change_with_a_resume():
    config = Config.resolve({"log": ["wandb", "tensorboard", "wandb"]})
    assert config.log == "wandb,tensorboard" and Config.resolve(config.to_dict()) == config
    assert config.identity() == Config.resolve({}).identity()
    for wrong, text in (("wand", r"unknown 'wand' \(did you mean 'wandb'\?\)"), (3, "got 3"), ([1], r"got \[1\]")):
        with pytest.raises(UsageError, match=f"log.*{text}"):
            Config.resolve({"log": wrong})


def test_a_package_that_is_missing_is_said_before_anything_is_written(quiet_place, capsys, monkeypatch, tmp_path):
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        assert cli.main(["train", "--epochs", "1", "--hidden", "8", "--log", name, "--out", "run"]) == 2
        assert f'--log {name} needs {name}: pip install "dstee[{name}]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
