"""Every method that there is trains under ``dstee train``, with settings of its own, and resumes to the bit."""

from pathlib import Path

import pytest
import torch
from experiments.test_train import DATA, Crash, leaves, make_config, outcome, replaced, run
from support.command_server import TINY

from dstee import CheckpointError, cli
from dstee._console import UsageError
from dstee.experiments import checkpoint, data, plot
from dstee.experiments.config import Config, grouped_keys, method_group, method_keys
from dstee.experiments.run_folder import read_manifest
from dstee.experiments.trial import Trial
from dstee.methods import METHODS
from dstee.methods.base import Method

# Not those that other tests have registered by now.
OURS = [key for key in grouped_keys() if key == "str" or (key in METHODS and METHODS[key].__module__.startswith("dstee."))]


@pytest.mark.parametrize("method", OURS)
def test_killed_at_any_phase_it_ends_with_the_same_bits(tmp_path, method):
    config = make_config(method=method, checkpoint_every=4, distribution="uniform")
    expected = outcome(run(config, tmp_path / "straight")[0])

    def crash(step):
        if step == 7:
            raise Crash

    for _ in range(3):  # at steps 7, 11 and 15 of 24: from 4, 8 and 12
        with pytest.raises(Crash):
            run(config, tmp_path / "killed", crash)
    results, log = run(config, tmp_path / "killed")
    assert log.started == [12] and not log.warnings
    assert outcome(results) == expected
    lines = [(tmp_path / name / f"{method}-seed0" / "metrics.jsonl").read_bytes() for name in ("straight", "killed")]
    assert lines[0] == lines[1]
    result = results[0]
    assert 0 < result.mean_density <= 1 and 0 < result.training_flops <= 1 and 0 < result.exploration <= 1
    assert result.exploration <= result.exploration_limit + 1e-12
    assert result.nnz == round(0.4 * result.numel), "every method ends with the budget"


@pytest.mark.parametrize("method", ["str", "deepr"])
@pytest.mark.parametrize("at", [4, 20])
def test_no_content_crashes_the_restore(tmp_path, method, at):
    """Of STR in both phases, and of a method with tensors of its own and few of its updates on record."""
    config = make_config(method=method, checkpoint_every=4)
    trial = Trial(config, method, 0, DATA)
    while trial.step_number < at:
        trial.step()
    checkpoint.save(tmp_path / "a", trial.saved())
    good = checkpoint.load(tmp_path / "a")
    again = Trial(config, method, 0, DATA)
    again.restore(tmp_path / "a", good)
    assert checkpoint.digest(again.state()) == checkpoint.digest(trial.state())
    junk = (-1, 1.5, "x", {}, torch.zeros(2), 2**70)
    accepted = set()
    for i, path in enumerate(leaves({key: value for key, value in good.items() if key not in ("rng", "seconds", "loss_sum")})):
        if path[0] == "history" and len(path) > 1 and path[1] > 1:
            continue  # these are like the first
        try:
            Trial(config, method, 0, DATA).restore(tmp_path / "a", replaced(good, path, junk[i % len(junk)]))
        except CheckpointError:
            continue
        accepted.add(path)
    shown = {("history", i, key) for i in (0, 1) for key in ("loss", "exploration")}  # and what decides no bit
    assert accepted <= {("optimizer", "state"), ("sparse", "shift"), *shown}


def test_all_have_a_place_in_the_table():
    assert sorted(grouped_keys()) == sorted(method_keys()) and grouped_keys()[0] == "dense"
    assert {method_group(key) for key in method_keys()} == {"dense", "at initialisation", "dense-to-sparse", "dynamic"}


def test_an_update_at_every_step_is_recorded_where_the_schedule_is_due():
    trial = Trial(make_config(method="deepr"), "deepr", 0, DATA)
    while trial.step_number < trial.total:
        trial.step()
    updates = [(r["step"], r["round"]) for r in trial.history if r["kind"] == "update"]
    assert updates == [(t, t) for t in range(2, 18, 2)] and trial.sparse.round == 17


def test_more_updates_than_counters_hold(monkeypatch):
    monkeypatch.setattr("dstee.experiments.trial.MAX_ROUNDS", 10)
    trial = Trial(make_config(method="deepr"), "deepr", 0, DATA)
    trial.step()
    assert trial.exploration() is None and trial.result().exploration is None
    with pytest.raises(UsageError, match="every 1 makes 17 mask updates, at most 8 are counted"):
        Trial(make_config(every=1), "dst-ee", 0, DATA)


def test_methods_that_look_at_data_get_the_first_samples(monkeypatch):
    seen = []

    class Looks(METHODS["static"]):
        needs_batches = True

        def start(self, s):
            seen.extend(s.batches)

    monkeypatch.setitem(METHODS, "static", Looks)
    trial = Trial(make_config(), "static", 0, DATA)
    assert [len(y) for _, y in seen] == [8] * 6
    assert all((x == DATA.x_train[8 * i : 8 * i + 8]).all() for i, (x, _) in enumerate(seen))
    plain = Trial(make_config(), "dense", 0, DATA)
    assert (trial.task.order.next() == plain.task.order.next()).all()


# --- settings of one method ----------------------------------------------------------------------------------------------


def test_settings_have_the_types_of_the_fields():
    config = Config.resolve({"method": "mest", "method_settings": ["soft=true", "exchange=0.25", "lam=1"]})
    method = config.make("mest")
    assert (method.soft, method.exchange, method.lam) == (True, 0.25, 1.0) and type(method.lam) is float
    assert Config.resolve(config.to_dict()) == config and config.identity()["method_settings"]["soft"] is True
    assert Config.resolve({"method": "mest", "method_settings": {"exchange": None}}).make("mest").exchange == 0.2
    assert "method_settings" not in Config.resolve({"method": "mest"}).identity()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"method": "snfs", "method_settings": ["bta=0.5"]}, r"snfs has no setting 'bta' \(did you mean 'beta'\?\)"),
        ({"method": "snfs", "method_settings": ["beta=x"]}, "beta of snfs must be of type float, got 'x'"),
        ({"method": "snfs", "method_settings": ["beta=nan"]}, "beta of snfs must be of type float, got 'nan'"),
        ({"method": "snfs", "method_settings": ["beta=1.5"]}, "snfs: beta must be"),
        ({"method": "sis", "method_settings": {"samples": 1.5}}, "samples of sis must be of type int, got 1.5"),
        ({"method": "mest", "method_settings": ["soft=1"]}, "soft of mest must be of type bool, got '1'"),
        ({"method": "str", "method_settings": ["decay=-1"]}, "str: decay must be a finite number >= 0, got -1.0"),
        ({"method": "dense", "method_settings": ["x=1"]}, "dense has no setting 'x', but none at all"),
        ({"method_settings": ["c=1"]}, "--set c: it has an option of its own, --c"),
        ({"method_settings": ["c"]}, "--set takes name=value, got 'c'"),
        ({"method": "snfs", "method_settings": ["beta=1", "beta=0"]}, "--set beta is given twice"),
        ({"compare": "rigl,snfs", "method_settings": ["beta=1"]}, r"needs the method's key before the name, as snfs\.beta"),
        ({"compare": True, "method_settings": ["snfs.beta=1"]}, "'snfs' is not trained, but dense, static"),
        ({"compare": "rigl,rgl"}, r"unknown method 'rgl' \(did you mean 'rigl'\?\)"),
        ({"compare": "rigl,rigl"}, "rigl is given twice"),
        ({"compare": 1}, "compare must be true, false, all or a list of methods, got 1"),
        ({"method_settings": 1}, "method_settings must be an object"),
    ],
)
def test_what_no_method_takes(given, reason):
    with pytest.raises(UsageError, match=reason):
        Config.resolve(given)


def test_what_others_are_set_to_does_not_matter_to_a_training():
    alone = Config.resolve({"method": "rigl"})
    beside = Config.resolve({"compare": "rigl,snfs", "method_settings": {"snfs.beta": 0.5}})
    assert alone.of_training("rigl") == beside.of_training("rigl")
    assert beside.of_training("snfs")["method_settings"] == {"beta": 0.5} and beside.make("snfs").beta == 0.5
    assert isinstance(beside.make("rigl"), Method) and beside.make("dense") is None


# --- the command line ----------------------------------------------------------------------------------------------------


def test_a_chosen_list_with_settings_is_trained_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--compare", "dense,str,snfs", "--seeds", "1", "--set", "snfs.beta=0.5", "--set", "str.decay=0.5", *TINY]
    assert cli.main(["train", "--out", "a", *options, "--train-limit", "300"]) == 0
    captured = capsys.readouterr()
    assert "300 training and 500 test images" in captured.out and "method_settings=snfs.beta=0.5,str.decay=0.5" in captured.out
    assert [line.split()[:2] for line in captured.err.splitlines()] == [["1/3", "dense"], ["2/3", "STR"], ["3/3", "SNFS"]]
    config = read_manifest(Path("a"))["config"]
    assert config["compare"] == "dense,str,snfs" and config["method_settings"] == {"snfs.beta": 0.5, "str.decay": 0.5}
    assert cli.main(["train", "--out", "a", "--resume"]) == 0
    assert cli.main(["train", "--out", "a", "--resume", "--set", "snfs.beta=0.25"]) == 2
    assert "method_settings is" in capsys.readouterr().err


@pytest.mark.slow
def test_verify_resume_takes_the_settings(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[1]))
    assert cli.main(["verify-resume", *TINY, "--method", "str", "--set", "decay=0.5"]) == 0
    assert "verdict: identical to the last bit" in capsys.readouterr().out


def test_the_first_images_are_standardised_as_all_of_them():
    everything = data.load("digits", None)
    some = everything.limited(100)
    assert (some.x_train == everything.x_train[:100]).all() and len(some.y_train) == 100 and some.digest != everything.digest
    assert everything.limited(0) is everything
    with pytest.raises(UsageError, match="train_limit must be at most the 1297 training images, got 1298"):
        everything.limited(1298)


def test_a_picture_of_many_lines():
    lines = [plot.Curves(f"m{i}", f"m{i}", [[(1, 0.1 * (i % 10)), (2, 0.1)]], [[(1, 0.5), (2, 0.6)]]) for i in range(20)]
    assert plot.draw(lines, "many")[:8] == b"\x89PNG\r\n\x1a\n"
