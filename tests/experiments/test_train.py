"""Trainings that are stopped in every way at every step, and end with the same bits as the one that was not."""

import copy
import dataclasses
import json
import math
import os
import signal

import pytest
import torch
from support.faults import Crash, FaultyOS

from dstee import CheckpointError, _files
from dstee._console import Interrupted
from dstee.experiments import checkpoint, records, run_folder, train
from dstee.experiments.checkpoint import CheckpointFolder
from dstee.experiments.config import COMPARED, Config
from dstee.experiments.data import Dataset
from dstee.experiments.trial import Trial


def make_data(n=48, features=12):
    """Four clouds of points, one per class."""
    g = torch.Generator().manual_seed(5)
    y = torch.arange(n) % 4
    x = torch.randn(4, features, generator=g)[y] + 0.3 * torch.randn(n, features, generator=g)
    return Dataset("digits", x, y, x[:20] + 0.1, y[:20])


DATA = make_data()


def make_config(**more):
    """4 epochs of 6 steps; updates at steps 2, 4, ... 16."""
    tiny = {"hidden": [9, 7], "epochs": 4, "batch_size": 8, "every": 2, "sparsity": 0.6, "checkpoint_every": 5}
    return Config.resolve({**tiny, **more})


class Log:
    """A Reporter that remembers."""

    def __init__(self):
        self.warnings, self.started = [], []

    def warn(self, text):
        self.warnings.append(text)

    def start(self, trial):
        self.started.append(trial.step_number)

    def advance(self, trial, loss):
        pass

    def finish(self, trial):
        pass


def run(config, folder, after_step=None):
    log = Log()
    folder.mkdir(exist_ok=True)
    return train.run_trials(config, DATA, folder, log, after_step=after_step), log


def outcome(results):
    return [dataclasses.replace(r, seconds=0.0, kernel_seconds=0.0) for r in results]


def metrics(folder, name):
    return (folder / name / "metrics.jsonl").read_bytes()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(run_folder, "PAUSE", 0)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Results and metrics of the uninterrupted training, by settings."""
    known = {}

    def get(config):
        if config not in known:
            folder = tmp_path_factory.mktemp("straight")
            results, _ = run(config, folder)
            known[config] = outcome(results), {r.method: metrics(folder, f"{r.method}-seed{r.seed}") for r in results}
        return known[config]

    return get


# --- stopping and resuming -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", COMPARED)
def test_a_crash_after_any_step_changes_no_bit(tmp_path, straight, method):
    config = make_config(method=method, order="default")
    expected, lines = straight(config)
    for at in range(1, 25) if method == "dst-ee" else (3, 6, 15, 16, 24):
        folder = tmp_path / str(at)

        def crash(step, at=at):
            if step == at:
                raise Crash

        with pytest.raises(Crash):
            run(config, folder, crash)
        results, log = run(config, folder)
        assert log.started == [at // 5 * 5]
        assert outcome(results) == expected
        assert metrics(folder, f"{method}-seed0") == lines[method]


@pytest.mark.parametrize("more", [{"order": "replace"}, {"momentum": 0.0, "nesterov": False}, {"drop_schedule": "constant"}])
def test_other_settings_resume_too(tmp_path, straight, more):
    config = make_config(**more)

    def crash(step):
        if step in (7, 13):
            raise Crash

    with pytest.raises(Crash):
        run(config, tmp_path / "a", crash)
    with pytest.raises(Crash):
        run(config, tmp_path / "a", lambda step: crash(step + 5))
    assert outcome(run(config, tmp_path / "a")[0]) == straight(config)[0]


def test_comparison_resumes_in_the_middle_and_keeps_what_is_done(tmp_path, straight):
    config = make_config(compare=True, seeds=1)

    def crash(step):
        if step == 60:
            raise Crash

    with pytest.raises(Crash):
        run(config, tmp_path / "a", crash)
    results, log = run(config, tmp_path / "a")
    assert log.started == [24, 24, 10, 0, 0]
    assert outcome(results) == straight(config)[0]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path, straight, signum):
    config = make_config()
    before = signal.getsignal(signum)

    def kill(step):
        if step == 8:
            os.kill(os.getpid(), signum)

    with pytest.raises(Interrupted) as stopped:
        run(config, tmp_path / "a", kill)
    assert stopped.value.signum == signum and signal.getsignal(signum) is before
    results, log = run(config, tmp_path / "a")
    assert log.started == [8]
    assert outcome(results) == straight(config)[0]


def test_the_number_of_threads_is_set_and_put_back(tmp_path):
    before, seen = torch.get_num_threads(), []
    run(make_config(threads=before + 1, epochs=1), tmp_path / "a", lambda step: seen.append(torch.get_num_threads()))
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


def test_training_learns_and_keeps_its_budget(tmp_path):
    results, _ = run(make_config(epochs=30, lr=0.05), tmp_path / "a")
    trial = Trial(make_config(epochs=30, lr=0.05), "dst-ee", 0, DATA)
    untrained = trial.task.scores()["accuracy"]
    assert results[0].accuracy > untrained + 0.3
    assert results[0].nnz == trial.sparse.nnz == round(0.4 * (12 * 9 + 9 * 7 + 7 * 10))
    assert 0.4 < results[0].exploration <= 1
    for line in metrics(tmp_path / "a", "dst-ee-seed0").splitlines():
        record = json.loads(line)
        assert record["kind"] in ("update", "epoch") and 0 < record["exploration"] <= 1


def test_a_training_whose_loss_is_not_finite_ends_there_and_says_so_each_time(tmp_path):
    config = make_config(lr=1e30, lr_schedule="constant", epochs=2, compare="dense,dst-ee")
    results, log = run(config, tmp_path / "a")
    for result in results:
        assert result.accuracy is None and 1 < result.diverged_at <= 12
    assert all(f"at step {r.diverged_at}, the training ends here" in w for r, w in zip(results, log.warnings, strict=True))
    assert b"NaN" not in metrics(tmp_path / "a", "dst-ee-seed0")
    assert [(r.diverged_at, r.digest) for r in run(config, tmp_path / "a")[0]] == [(r.diverged_at, r.digest) for r in results]


# --- a failing disk ------------------------------------------------------------------------------------------------------

WRITING = ("open", "write", "fsync", "replace")


def patch_os(monkeypatch, faulty):
    for module in (_files, checkpoint, records):
        monkeypatch.setattr(module, "os", faulty)


@pytest.mark.long
def test_a_full_disk_at_any_single_call_is_reported_and_survived(tmp_path, monkeypatch, straight):
    """ENOSPC at the n-th open, write, fsync or rename, for every n: a warning, and the same bits and metrics."""
    config = make_config(epochs=2)
    expected, lines = straight(config)
    for n in range(10_000):
        folder = tmp_path / str(n)
        faulty = FaultyOS(n, OSError(28, "No space left on device"), calls=WRITING)
        patch_os(monkeypatch, faulty)
        results, log = run(config, folder)
        patch_os(monkeypatch, os)
        assert outcome(results) == expected
        assert metrics(folder, "dst-ee-seed0") == lines["dst-ee"]
        if faulty.count <= n:
            assert not log.warnings
            break
        assert len(log.warnings) == 1 and "No space left on device (1 of 3 times)" in log.warnings[0]
        assert CheckpointFolder(folder / "dst-ee-seed0", 2, pytest.fail).newest()[1]["step"] == 12
        assert not [name for name in os.listdir(folder / "dst-ee-seed0") if "tmp" in name]
    assert n > 40


@pytest.mark.long
def test_death_at_any_call_resumes_to_the_same_bits(tmp_path, monkeypatch, straight):
    """From the n-th call on nothing reaches the disk, clean-up included, for every n; then the training is resumed."""
    config = make_config(epochs=2)
    expected, lines = straight(config)
    for n in range(10_000):
        folder = tmp_path / str(n)
        patch_os(monkeypatch, FaultyOS(n, Crash(), dead=True))
        try:
            run(config, folder)
            finished = True
        except Crash:
            finished = False
        patch_os(monkeypatch, os)
        results, log = run(config, folder)
        assert not log.warnings and outcome(results) == expected
        assert metrics(folder, "dst-ee-seed0") == lines["dst-ee"]
        if finished:
            break
    assert n > 60


@pytest.mark.parametrize("from_call", [0, 9, 25, 40])
def test_a_disk_that_stays_full_stops_the_training_and_can_be_resumed(tmp_path, monkeypatch, straight, from_call):
    config = make_config()
    patch_os(monkeypatch, FaultyOS(from_call, OSError(28, "No space left on device"), dead=True, calls=WRITING))
    with pytest.raises(_files.WriteError, match=r"No space left on device \(3 of 3 times\): make room, then .* --resume"):
        run(config, tmp_path / "a")
    patch_os(monkeypatch, os)
    assert outcome(run(config, tmp_path / "a")[0]) == straight(config)[0]


# --- damaged, foreign and hostile checkpoints ----------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A finished run folder, its configuration and its newest checkpoint."""
    config = make_config()
    run(config, tmp_path / "a")
    folder = CheckpointFolder(tmp_path / "a" / "dst-ee-seed0", 2, pytest.fail)
    assert folder.steps() == [20, 24]
    return tmp_path / "a", config, folder


def test_a_flipped_bit_costs_some_steps_and_no_bits(saved, straight):
    path, config, folder = saved
    file = folder.path(24)
    whole = file.read_bytes()
    for i in range(40):
        damaged = bytearray(whole)
        damaged[i * (len(whole) - 1) // 39] ^= 1 << i % 8
        file.write_bytes(damaged)
        results, log = run(config, path)
        assert log.started == [20] and len(log.warnings) == 1 and file.name in log.warnings[0]
        assert outcome(results) == straight(config)[0]
        assert file.read_bytes()[:8] == whole[:8]


def test_no_whole_checkpoint_is_an_error(saved):
    path, config, folder = saved
    for step in folder.steps():
        folder.path(step).write_bytes(b"DSTEECK1")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints is whole"):
        run(config, path)


def test_all_differences_of_a_foreign_checkpoint_are_listed_at_once(saved):
    path, _, folder = saved
    other = make_config(hidden=[8, 7, 6], c=0.5)
    with pytest.raises(CheckpointError) as caught:
        run(other, path)
    text = str(caught.value)
    for part in (
        "c is 0.001 there, 0.5 here", "hidden is [9, 7] there, [8, 7, 6] here", "weights hidden3.weight is missing",
        "weights hidden1.weight is float32 [9, 12], expected float32 [8, 12]", "momentum hidden3.bias is float32 [10]",
        folder.path(24).name,
    ):  # fmt: skip
        assert part in text, part
    assert "\n" not in text


def test_wrong_names_and_dtypes_are_listed_at_once(saved):
    path, config, folder = saved
    tree = checkpoint.load(folder.path(24))
    tree["model"]["extra"] = tree["model"].pop("hidden1.bias")
    tree["model"]["output.weight"] = tree["model"]["output.weight"].half()
    tree["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)
    checkpoint.save(folder.path(24), tree)
    with pytest.raises(CheckpointError) as caught:
        run(config, path)
    for part in (
        "weights hidden1.bias is missing", "weights extra is unknown",
        "weights output.weight is float16 [10, 7], expected float32 [10, 7]",
        "momentum hidden1.weight is float32 [3], expected float32 [9, 12]",
    ):  # fmt: skip
        assert part in str(caught.value)


def leaves(node, path=()):
    """Paths of all nodes below ``node``."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def replaced(tree, path, value):
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        if isinstance(node[key], tuple):
            node[key] = list(node[key])
        node = node[key]
    if value is KeyError:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return tree


@pytest.mark.long
def test_no_content_whatever_crashes_the_restore(saved):
    """Every node of a real checkpoint replaced by junk or removed: refused in one line, or harmless (times)."""
    _, config, folder = saved
    good = checkpoint.load(folder.path(24))
    good["history"] = good["history"][:1] + good["history"][-1:]  # the records in between are like these
    junk = (None, -1, 2**70, 1.5, "x", [], {}, torch.zeros(2), KeyError, True, math.nan, math.inf, 10**400)
    accepted = set()
    for i, path in enumerate(leaves(good)):
        for value in (junk[i % len(junk)], junk[(i + 4) % len(junk)], KeyError):
            if value is KeyError and isinstance(path[-1], int):
                continue
            trial = Trial(config, "dst-ee", 0, DATA)
            try:
                trial.restore(folder.path(24), replaced(good, path, value))
            except CheckpointError as error:
                assert "\n" not in str(error)
            else:
                accepted.add((path, value))
    assert accepted <= {(("seconds", 0), 1.5), (("seconds", 1), 1.5), (("loss_sum",), 1.5)}
    for path in ((), ("optimizer", "state", 0)):
        with pytest.raises(CheckpointError):
            Trial(config, "dst-ee", 0, DATA).restore(folder.path(24), replaced(good, (*path, "more"), 1))


def test_the_fuzzed_checkpoint_is_accepted_when_nothing_is_replaced(saved):
    _, config, folder = saved
    tree = checkpoint.load(folder.path(24))
    trial = Trial(config, "dst-ee", 0, DATA)
    torch.manual_seed(123)
    trial.restore(folder.path(24), tree)
    assert trial.step_number == 24
    assert torch.equal(torch.get_rng_state(), tree["rng"]), "the global generator goes on where it was"
    assert checkpoint.digest(trial.state()) == checkpoint.digest({k: v for k, v in tree.items() if k != "seconds"})


def test_weights_outside_the_mask_are_refused(saved):
    _, config, folder = saved
    tree = checkpoint.load(folder.path(24))
    tree["model"]["hidden1.weight"] += 1
    with pytest.raises(CheckpointError, match=r"hidden1\.weight has weights outside its mask"):
        Trial(config, "dst-ee", 0, DATA).restore(folder.path(24), tree)


def test_other_data_are_refused(saved):
    path, config, _ = saved
    other = dataclasses.replace(DATA, x_test=DATA.x_test + 1)
    with pytest.raises(CheckpointError, match="other data"):
        train.run_trials(config, other, path, Log())
