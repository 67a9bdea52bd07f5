"""Sweeps: the trainings of a grid file over several processes that stop, die and go on."""

import json
import os
import pty
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from support.command_server import digests
from support.sweep_worker_path import FAKE

from dstee import cli
from dstee._console import Interrupted, UsageError
from dstee.experiments import data
from dstee.experiments.run_folder import hold_folder
from dstee.experiments.sweep import worker as sweep_worker
from dstee.experiments.sweep.check import PlannedRun, check_folders, check_trainings, load_all
from dstee.experiments.sweep.command import SweepOptions
from dstee.experiments.sweep.grid import parse_grid
from dstee.experiments.sweep.progress import Estimate, duration
from dstee.experiments.sweep.run import run_sweep
from dstee.experiments.sweep.workers import Worker
from dstee.experiments.trial import Trial, task_of

GRID = """
seeds = 2
[settings]
hidden = [8]
epochs = 2
batch_size = 256
every = 3
stop_fraction = 1.0
[grid]
method = ["dense", "set", "dst-ee"]
sparsity = [0.9, 0.95]
[[variant]]
label = "diverges"
method = "rigl"
lr = 1e30
lr_schedule = "constant"
sparsity = 0.9
"""


def grid(text=GRID):
    return parse_grid(text.encode(), "g.toml")


def planned(made, out):
    return check_trainings(made.runs, out, load_all(made.runs, None))


class Silent:
    def __getattr__(self, name):
        return lambda *values: None


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep by two real processes."""
    out = tmp_path_factory.mktemp("swept") / "runs"
    file = out.parent / "grid.toml"
    file.write_text(GRID)
    assert cli.main(["sweep", str(file), "--out", str(out), "--jobs", "2"]) == 0
    return out


@pytest.mark.long
def test_two_processes_make_the_bits_of_one(swept, tmp_path):
    runs = grid().runs
    assert {path.name for path in swept.iterdir() if path.is_dir()} == {run.name for run in runs}
    for run in runs:
        sweep_worker.make_run(run.config, tmp_path / run.name, None, Silent(), True)
        assert digests(tmp_path / run.name) == digests(swept / run.name) != {}
    (result,) = json.loads((swept / "diverges-sparsity0.9-seed0" / "results.json").read_text())["results"]
    assert result["diverged_at"] > 1 and result["accuracy"] is None
    assert json.loads((swept / "diverges-sparsity0.9-seed0" / "config.json").read_text())["config"]["label"] == "diverges"
    assert len(list(swept.glob("set-sparsity0.9-seed0/*/final.dst"))) == 1 and not list(swept.rglob("checkpoint-*"))
    assert (swept / "grid.toml").read_text() == GRID


def test_batched_seeds_are_one_run(tmp_path):
    made = grid("seeds = 2\n[settings]\nbatch_seeds = true\nepochs = 1\nhidden = [4]")
    (run,) = made.runs
    results = sweep_worker.make_run(run.config, tmp_path / run.name, None, Silent(), False)
    assert [result.seed for result in results] == [0, 1] and not list(tmp_path.rglob("*.dst"))
    (one,) = check_folders(planned(made, tmp_path), pytest.fail)
    assert one.state == "finished" and one.work == 2 * one.samples


def test_what_is_finished_is_left_as_it_is(swept, tmp_path, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in swept.rglob("results.json")}
    monkeypatch.setattr(Worker, "COMMAND", ("/no/such/program",))
    assert run_sweep(grid(), SweepOptions(swept)) == 0
    assert "12 runs: 12 finished already\nfinished 12 of 12 runs\ntable    dstee table" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in swept.rglob("results.json")}


def test_changed_settings_are_refused_by_their_names(swept):
    for old, new, text in (
        ("every = 3", "every = 4", "every is 3 there, 4 here (and 9 more runs)"),
        ("hidden = [8]", "hidden = [9]", "hidden is [8] there, [9] here (and 11 more runs)"),
    ):
        with pytest.raises(UsageError) as caught:
            run_sweep(grid(GRID.replace(old, new)), SweepOptions(swept))
        assert text in str(caught.value) and "put the settings back" in str(caught.value)


def test_more_values_and_free_settings_only_add_runs(swept, capsys):
    text = GRID.replace("seeds = 2", "seeds = 3").replace("[0.9, 0.95]", "[0.9, 0.95, 0.5]")
    text = text.replace("every = 3", "every = 3\nkeep_checkpoints = 5")
    assert run_sweep(grid(text), SweepOptions(swept, dry_run=True)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "24 runs: 12 finished already, 12 to be made"
    assert "set-sparsity0.5-seed0" in "\n".join(line for line in shown if line.endswith("new"))


def test_a_damaged_result_is_made_again(swept, tmp_path):
    one = next(p for p in planned(grid(), swept) if p.run.name == "set-sparsity0.9-seed0")
    file, warned = one.folder / "results.json", []
    whole = file.read_bytes()
    try:
        for text in (b"{", b'{"results": []}', whole.replace(b'"seed": 0', b'"seed": 7')):
            file.write_bytes(text)
            assert [p.state for p in check_folders([one], warned.append)] == ["begun"]
    finally:
        file.write_bytes(whole)
    assert len(warned) == 2 and all("results.json" in text for text in warned)


def test_a_new_label_needs_no_new_training(tmp_path):
    runs = grid("[settings]\nepochs = 1\nhidden = [4]\n[[variant]]\nlabel = 'DST-EE'").runs
    sweep_worker.make_run(runs[0].config, tmp_path / runs[0].name, None, Silent(), False)
    assert not list(tmp_path.rglob("*.dst"))
    again = grid("[settings]\nepochs = 1\nhidden = [4]\n[[variant]]\nlabel = 'dst-ee'")
    assert [p.state for p in check_folders(planned(again, tmp_path), pytest.fail)] == ["finished"]
    assert json.loads((tmp_path / "dst-ee-seed0" / "config.json").read_text())["config"]["label"] == "dst-ee"


def test_methods_of_a_seed_start_from_the_same_weights_masks_and_batches():
    text = GRID.replace('"set", ', '"set", "static", "rigl", "mest", "snfs", "snip", ')
    weights, masks, batches = {}, {}, {}
    dataset = None
    for run in grid(text).runs:
        config = run.config
        dataset = dataset or task_of(config).prepare(data.load(config.data, None), config)
        trial = Trial(config, config.method, config.seed, dataset)
        start = trial.task.model
        dense = Trial(grid().runs[0].config, "dense", config.seed, dataset).model
        held = trial.sparse.masks() if trial.sparse is not None else {}
        for (name, got), (_, whole) in zip(start.named_parameters(), dense.named_parameters(), strict=True):
            assert torch.equal(got, whole * held[name] if name in held else whole), run.name
        weights.setdefault(config.seed, []).append(next(dense.parameters()).detach().clone())
        if held and config.method != "snip":
            masks.setdefault((config.seed, config.sparsity), []).append(torch.cat([m.flatten() for m in held.values()]))
        batches.setdefault(config.seed, []).append(torch.cat([trial.task.order.next() for _ in range(9)]))
    for same in (weights, masks, batches):
        assert all(torch.equal(one, group[0]) for group in same.values() for one in group)
    assert not torch.equal(weights[0][0], weights[1][0]) and not torch.equal(batches[0][0], batches[1][0])
    assert not torch.equal(masks[0, 0.9][0], masks[1, 0.9][0])
    assert all(len(group) >= 6 for group in masks.values())


# --- what cannot be done -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[settings]\nbatch_size = 5000", r"^dst-ee-seed0: .*5000"),
        ("[settings]\ntrain_limit = 5000", "train_limit must be at most"),
        ("[settings]\ndata = 'mnist'", "mnist needs the folder"),
        ("[settings]\nevery = 9999\n[[variant]]\nmethod = 'gap'\nlabel = 'x'", "^x-seed0: .*GaP"),
    ],
)
def test_what_the_data_do_not_allow_is_refused_before_a_folder_is_made(quiet_place, tmp_path, text, reason):
    with pytest.raises(UsageError, match=reason):
        run_sweep(grid(text), SweepOptions(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused(tmp_path):
    with pytest.raises(UsageError, match="torch finds no GPU"):
        run_sweep(grid("[settings]\ndevice = 'cuda'"), SweepOptions(tmp_path))
    with pytest.raises(UsageError, match="--gpus is for trainings on GPUs"):
        run_sweep(grid(), SweepOptions(tmp_path, gpus=("0",)))


def test_folders_of_others_are_refused(tmp_path, swept):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "dense-seed0").write_text("mine")
    with pytest.raises(UsageError, match="in the way of a run"):
        run_sweep(grid(), SweepOptions(tmp_path / "a"))
    with pytest.raises(UsageError, match="is the folder of a run"):
        run_sweep(grid(), SweepOptions(swept / "dense-seed0"))
    (tmp_path / "link").symlink_to(swept)
    with pytest.raises(UsageError, match="symbolic link"):
        run_sweep(grid(), SweepOptions(tmp_path / "link"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--jobs", "0"], "--jobs must be in 1..1024"),
        (["--gpus", "0,0"], "--gpus must be"),
        (["--gpus", "0,"], "--gpus must be"),
    ],
)
def test_wrong_options_are_refused(tmp_path, capsys, options, reason):
    (tmp_path / "g.toml").write_text(GRID)
    assert cli.main(["sweep", str(tmp_path / "g.toml"), "--out", str(tmp_path / "x"), *options]) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "x").exists()


# --- processes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Workers without torch that behave as the names of their runs say; returns the folder where they leave traces."""
    monkeypatch.setattr(Worker, "COMMAND", (sys.executable, str(FAKE), str(tmp_path)))
    return tmp_path


def behaving(*labels):
    head = "[settings]\nhidden = [4]\nepochs = 1\n"
    return grid(head + "".join(f"[[variant]]\nlabel = '{label}'\nmethod = 'static'\n" for label in labels))


def test_runs_that_fail_or_die_are_said_at_the_end_and_the_others_are_made(fake, capsys):
    status = run_sweep(behaving("good", "wrong", "dies", "once", "exits", "fine"), SweepOptions(fake / "runs", jobs=2))
    out, err = capsys.readouterr()
    assert status == 1 and "finished 3 of 6 runs" in out
    assert {path.parent.name for path in fake.glob("runs/*/done")} == {"good-seed0", "once-seed0", "fine-seed0"}
    failed = [line for line in err.splitlines() if line.startswith("dstee: failed: ")]
    assert len(failed) == 3
    assert "dstee: failed: wrong-seed0: budget that no distribution meets" in failed
    assert "dstee: failed: dies-seed0: its process was killed by SIGKILL (out of memory?), twice" in failed
    assert "dstee: failed: exits-seed0: its process ended with status 1: MemoryError: no room, twice" in failed
    assert "once-seed0: its process was killed by SIGKILL (out of memory?); it is tried once more" in err


def test_processes_that_cannot_start_end_the_sweep_at_once(fake):
    (fake / "broken").touch()
    with pytest.raises(UsageError, match="could not start: its process ended with status 1: ImportError: no torch"):
        run_sweep(behaving("good", "fine"), SweepOptions(fake / "runs", jobs=1))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes_once_and_says_how_to_go_on(fake, signum):
    def send():
        deadline = time.monotonic() + 60
        while len(list(fake.glob("waiting-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signum)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Interrupted) as stopped:
        run_sweep(behaving("waits", "waits too", "good"), SweepOptions(fake / "runs", jobs=2, again="do it again"))
    sender.join()
    assert (stopped.value.signum, stopped.value.how) == (signum, "do it again")
    assert len(list(fake.glob("stopped-*"))) == 2 and not list(fake.glob("runs/*/done"))
    assert run_sweep(behaving("waits", "waits too", "good"), SweepOptions(fake / "runs")) == 0


def test_one_sweep_at_a_time_has_the_folder(fake, capsys):
    runs = fake / "my runs"
    with hold_folder(runs, "sweep"), pytest.raises(UsageError, match="my runs is in use by another sweep"):
        run_sweep(behaving("good"), SweepOptions(runs))
    assert run_sweep(behaving("good"), SweepOptions(runs)) == 0
    assert f"table    dstee table '{runs}'\n" in capsys.readouterr().out  # as a shell takes it


def test_gpus_are_dealt_out_in_turn(fake, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    runs = [f"good {i}" for i in range(6)]
    made = behaving(*runs)
    cuda = parse_grid(made.text.replace(b"epochs", b'device = "cuda"\nepochs'), "g.toml")
    assert run_sweep(cuda, SweepOptions(fake / "a", gpus=("0", "2"))) == 0
    assert {path.read_text() for path in fake.glob("a/*/done")} <= {"0", "2"}
    with pytest.raises(UsageError, match="--gpus 5: there is no such GPU, but 0, 1, 2"):
        run_sweep(cuda, SweepOptions(fake / "b", gpus=("5",)))


@pytest.mark.parametrize("columns", [40, 100])
def test_in_a_terminal_there_is_a_bar_that_keeps_the_names_of_methods(fake, monkeypatch, columns):
    main, side = pty.openpty()
    monkeypatch.setattr(sys, "stderr", open(side, "w"))  # noqa: SIM115  # closed below
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    assert run_sweep(behaving("good"), SweepOptions(fake / "runs")) == 0
    sys.stderr.close()
    shown = b""
    while True:
        try:
            part = os.read(main, 1 << 16)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert b"good-seed0" in shown and b"1/1" in shown


# --- the time that is left -----------------------------------------------------------------------------------------------


def test_the_time_left_follows_the_work_of_the_same_kind():
    now = [0.0]
    runs = [
        PlannedRun(run, Path(), "", 1000, ("a",) if i < 3 else ("b",))
        for i, run in enumerate(grid("seeds = 5\n[settings]\nepochs = 10").runs)
    ]
    names = [run.run.name for run in runs]
    estimate = Estimate(runs, lambda: now[0])
    assert estimate.left(1) is None and estimate.done == 0
    estimate.begin(names[0])
    now[0] = 100.0  # torch and the data were loaded
    estimate.place(names[0], 0.0, True)
    now[0] = 110.0
    estimate.place(names[0], 0.5)
    assert estimate.left(1) == pytest.approx(10 + 4 * 20)
    now[0] = 120.0
    estimate.end(names[0])
    assert estimate.left(2) == pytest.approx(40) and estimate.done == pytest.approx(0.2)
    estimate.begin(names[3])
    estimate.place(names[3], 0.0, True)
    now[0] = 130.0
    estimate.place(names[3], 0.1)  # b takes five times as long
    assert estimate.left(1) == pytest.approx(2 * 20 + 90 + 100)
    assert estimate.left(10) == pytest.approx(100), "not less than the longest"
    estimate.end(names[3], False)
    assert estimate.left(1) == pytest.approx(3 * 20), "a failed one says nothing"


def test_durations():
    assert [duration(x) for x in (0.4, 59.6, 3661, 90061)] == ["0:00:00", "0:01:00", "1:01:01", "1 d 1:01:01"]
