"""Branches that measure what an update ignored: the training does not notice, and the files say what plain steps say."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from experiments.test_train import DATA, Log, make_config, outcome, run

from dstee import cli
from dstee._console import UsageError
from dstee.experiments import checkpoint, ignored, train
from dstee.experiments.ignored import read_measurements
from dstee.experiments.trial import Diverged, Trial

AT = {"ignored_at": [4, 10], "ignored_steps": 3}


def at_step(step, **more):
    trial = Trial(make_config(**AT, **more), more.get("method", "dst-ee"), 0, DATA)
    while trial.step_number < step:
        trial.step()
    return trial


def refuse(text):
    raise AssertionError(text)


@pytest.mark.parametrize("more", [{}, {"method": "set", "optimizer": "adam"}, {"method": "granet"}])
def test_the_training_does_not_notice(more):
    trial, rng = at_step(4, **more), torch.get_rng_state()
    before = checkpoint.digest(trial.state())
    assert ignored.measure(trial, refuse) is not None
    assert checkpoint.digest(trial.state()) == before and torch.equal(torch.get_rng_state(), rng)
    follow, other = copy.deepcopy(trial.state()), at_step(4, **more)
    assert checkpoint.digest(follow) == checkpoint.digest(other.state())
    trial.step(), other.step()
    assert checkpoint.digest(trial.state()) == checkpoint.digest(other.state())


def test_what_is_important_comes_from_plain_steps():
    trial = at_step(4)
    found = ignored.measure(trial, refuse)
    assert (found.method, found.seed, found.step, found.steps, found.label) == ("dst-ee", 0, 4, 3, "DST-EE")
    grown = {name: layer.grown() for name, layer in trial.sparse.layers.items()}
    masks = trial.sparse.masks()
    before = {name: layer.bools(layer.previous_bits) for name, layer in trial.sparse.layers.items()}

    plain = copy.deepcopy(trial.model)
    momenta = {n: trial.optimizer.state[p]["momentum_buffer"].clone() for n, p in trial.model.named_parameters()}
    order = copy.deepcopy(trial.task.order)
    for step in range(4, 7):
        lr = trial._lr(step)
        x, y = trial.data.fetch(order.next())
        plain.zero_grad()
        torch.nn.functional.cross_entropy(plain(x), y).backward()
        with torch.no_grad():
            for name, p in plain.named_parameters():
                g = p.grad + 5e-4 * p
                momenta[name].mul_(0.9).add_(g)
                p.sub_(lr * (g + 0.9 * momenta[name]))
    later = at_step(7)
    x, y = later.data.fetch(later.task.order.next())
    later.model.zero_grad()
    torch.nn.functional.cross_entropy(later.model(x), y).backward()
    importance = {
        "dense": {name: p.detach().abs() for name, p in plain.named_parameters()},
        "sparse": {name: p.grad.abs() for name, p in later.model.named_parameters()},
    }
    for kind, growth in found.measures.items():
        assert list(growth.per_layer) == [name for name in masks if grown[name].any()]
        for name, one in growth.per_layer.items():
            k = trial.sparse.schedule.swap_count(int(masks[name].sum()), 4)
            values = importance[kind][name].flatten().tolist()
            free = [i for i, was in enumerate(before[name].flatten().tolist()) if not was]
            sought = set(sorted(free, key=lambda i: -values[i])[:k])
            missed = sought - set(grown[name].flatten().nonzero().flatten().tolist())
            assert (one.grown, one.important, one.missed) == (k, len(sought), len(missed)), (kind, name)
            assert one.candidates == masks[name].numel() - int(masks[name].sum()) + k


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*-*.*") if "check" not in path.name
    }


def test_a_resumed_run_ends_with_the_same_files_and_the_run_without_them(tmp_path):
    config = make_config(compare="dense,static,rigl,dst-ee", seeds=1, keep_masks=True, **AT)
    bare, _ = run(make_config(compare="dense,static,rigl,dst-ee", seeds=1), tmp_path / "bare")
    whole, log = run(config, tmp_path / "whole")
    assert outcome(whole) == outcome(bare) and not log.warnings
    expected = files(tmp_path / "whole")
    measured = {f"{method}-seed0/ignored-{step:010d}.json" for method in ("dst-ee", "rigl") for step in (4, 10)}
    assert {name for name in expected if "ignored" in name} == measured
    assert len([name for name in expected if name.startswith("rigl-seed0/masks")]) == 1 + 8
    assert [name for name in expected if name.startswith("static")] == ["static-seed0/masks-0000000000.dst"]

    class Cut(Exception):
        pass

    def stop_at(n):
        def after(done):
            if done == n:
                raise Cut

        return after

    for n in (24 + 24 + 3, 13):  # in RigL before its first checkpoint; then beyond the one at step 10
        with pytest.raises(Cut):
            train.run_trials(config, DATA, tmp_path, Log(), after_step=stop_at(n))
    for name in ("rigl-seed0/masks-0000000001.dst", "rigl-seed0/ignored-0000000004.json"):
        assert (tmp_path / name).exists()
    train.run_trials(config, DATA, tmp_path, Log())
    assert {k: v for k, v in files(tmp_path).items() if not k.startswith(("bare", "whole"))} == expected


def test_seeds_that_train_at_once_measure_as_alone(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    run(make_config(method="rigl", seeds=2, keep_masks=True, **AT), alone)
    run(make_config(method="rigl", seeds=2, keep_masks=True, batch_seeds=True, **AT), together)
    assert [m.measures for m in read_measurements([alone])] == [m.measures for m in read_measurements([together])]
    masks = {name: data for name, data in files(alone).items() if "masks" in name}
    assert len(masks) == 2 * 9 and masks.items() <= files(together).items()


def test_measurements_are_read_back(tmp_path):
    run(make_config(compare="rigl,dst-ee", seeds=2, **AT), tmp_path / "run")
    found = read_measurements([tmp_path / "run"])
    assert sorted((m.method, m.seed, m.step) for m in found) == [
        (method, seed, step) for method in ("dst-ee", "rigl") for seed in (0, 1) for step in (4, 10)
    ]
    file = tmp_path / "all.json"
    file.write_bytes(ignored.dump_measurements(found))
    assert read_measurements([file]) == found and found[0].settings["every"] == 2
    json.loads(file.read_text())


def good(tmp_path):
    trial = at_step(4)
    ignored.save(tmp_path, ignored.measure(trial, refuse))
    return json.loads((tmp_path / "ignored-0000000004.json").read_text())


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda held, row: held.update(format="other"), "it is no file of measurements"),
        (lambda held, row: held.update(version=2), "it has version 2, this dstee reads 1"),
        (lambda held, row: held.update(rows=[]), "'rows' is no list of 1 to"),
        (lambda held, row: row.update(more=1), "a measurement has label, measures"),
        (lambda held, row: row.update(method="rigle"), r"unknown method 'rigle' \(did you mean 'rigl'\?\)"),
        (lambda held, row: row.update(step=-1), "no label, seed and steps"),
        (lambda held, row: row.update(label="x" * 2000), "no label, seed and steps"),
        (lambda held, row: row["measures"].update(other={}), "measures are not some of dense, sparse"),
        (lambda held, row: row["measures"].update(dense={}), "layers are no object of 1 to"),
        (lambda held, row: row["measures"].update(dense={"a": [1, 2, 3]}), "'a' has no four counts"),
        (lambda held, row: row["measures"].update(dense={"a": [5, 2, 2, 3]}), "the counts of 'a' contradict each other"),
        (lambda held, row: row["measures"].update(dense={"a": [5, 0, 0, 0]}), "the counts of 'a' contradict each other"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, edit, text):
    held = good(tmp_path)
    edit(held, held["rows"][0])
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(held))
    with pytest.raises(UsageError, match=text):
        read_measurements([file])


def test_a_branch_that_diverges_is_said_and_left_out(monkeypatch):
    trial, warnings = at_step(4), []
    step = Trial.step

    def diverge(self):
        if self.step_number == 6:
            raise Diverged
        return step(self)

    monkeypatch.setattr(Trial, "step", diverge)
    assert ignored.measure(trial, warnings.append) is None
    assert warnings == ["dst-ee-seed0: what the update at step 4 ignored is unknown, the loss after it is not finite"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--ignored-at 65", r"ignored_at 65 is no step of a mask update \(the nearest is 40; 2 from 20 to 40\)"),
        ("--ignored-at 40 --ignored-steps 5000", r"ignored_at 40 and ignored_steps 5000 reach beyond the \d\d steps of the"),
        ("--ignored-at 40 --method static", "no method of this run has any"),
        ("--ignored-at 0", r"ignored_at must be a list of at most 100 steps from 1 on, got \[0\]"),
    ],
)
def test_steps_that_cannot_be_measured_are_refused_before_anything_is_written(options, text, quiet_place, capsys):
    tiny = ["train", "--epochs", "3", "--hidden", "8", "--stop-fraction", "1", "--out", "run"]
    assert cli.main([*tiny, *options.split()]) == 2
    assert re.search(text, capsys.readouterr().err)
    assert not Path("run").exists()
