"""``dstee train`` on several processes: the networks of one process, one folder, and a stop after which all go on."""

import json
import os
import signal

import pytest
import torch
from support.command_server import digests
from support.processes import RanksFailed
from support.tiny_graph import needs_geometric, tiny_graph

from dstee._console import Interrupted, UsageError
from dstee.experiments import commands, data, processes
from dstee.experiments.config import Config
from dstee.experiments.data import Dataset, Source
from dstee.experiments.models import MODELS
from dstee.experiments.trial import Trial

pytestmark = pytest.mark.ranks

TINY = {
    "hidden": [24], "epochs": 2, "batch_size": 48, "every": 4, "sparsity": 0.8, "checkpoint_every": 5, "lr": 0.05,
    "compare": "dense,rigl,set,dst-ee,snip,granet",
}  # fmt: skip


class Normed(torch.nn.Sequential):
    """Running statistics differ between processes until the first one's are taken."""

    def __init__(self, input_shape, classes):
        conv = torch.nn.Conv2d(input_shape[0], 8, 3, stride=2)
        super().__init__(conv, torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(classes))
        self(torch.zeros(2, *input_shape))


def pictures():
    g = torch.Generator().manual_seed(1)
    y = torch.arange(96) % 4
    x = torch.rand(4, 2, 9, 9, generator=g)[y] + 0.3 * torch.randn(96, 2, 9, 9, generator=g)
    return Dataset("pictures", x, y, x[:41] + 0.01, y[:41], classes=4, pad=1)


def train(rank, out, mode="new", more=None):
    """As one of several processes, or alone (rank None)."""
    data.DATA_SETS["pictures"] = Source(lambda folder: pictures(), {"model": "normed", "augment": True, "batch_size": 16})
    MODELS["normed"] = Normed
    commands.train(Config.resolve({**TINY, **(more or {})}), out, None, mode)


def stopped(rank, out, at, more):
    """The second process alone is told to stop, in front of its step ``at`` + 1."""
    steps, step = 0, Trial.step

    def counted(trial):
        nonlocal steps
        steps += 1
        if steps == at and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trial)

    Trial.step = counted
    with pytest.raises(Interrupted):
        train(rank, out, "new", more)


def test_two_processes_train_the_networks_of_one(launcher, tmp_path):
    launcher.run(2, train, tmp_path / "two")
    train(None, tmp_path / "one")
    one, two = (json.loads((tmp_path / name / "results.json").read_bytes())["results"] for name in ("one", "two"))
    assert [r["method"] for r in one] == [r["method"] for r in two]
    for alone, together in zip(one, two, strict=True):
        assert alone["nnz"] == together["nnz"] and abs(alone["accuracy"] - together["accuracy"]) < 0.03
        assert alone["training_flops"] == pytest.approx(together["training_flops"])


def test_running_statistics_and_augmentation_are_resumed_to_the_bit(launcher, tmp_path):
    more = {"data": "pictures", "hidden": [512, 256], "compare": False, "method": "rigl", "epochs": 4, "batch_size": 16}
    launcher.run(2, train, tmp_path / "straight", "new", more)
    launcher.run(2, stopped, tmp_path / "stopped", 13, more)
    saved = [p.name for p in (tmp_path / "stopped").glob("*/checkpoint-*.dst")]
    assert "checkpoint-0000000013.dst" in saved and not (tmp_path / "stopped" / "results.json").exists()
    launcher.run(2, train, tmp_path / "stopped", "resume", more)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "straight")


def train_links(rank, out):
    graph = tiny_graph()
    settings = data.DATA_SETS["wiki_vote"].settings
    data.DATA_SETS["wiki_vote"] = Source(lambda folder: graph, settings, task="link-prediction")
    given = {"data": "wiki_vote", "batch_size": 40, "epochs": 1, "every": 4, "sparsity": 0.8, "method": "rigl"}
    more = {"keep_masks": True, "ignored_at": [4], "ignored_steps": 2}
    commands.train(Config.resolve({**given, **more}), out, None, "new")


def test_links_are_predicted_by_two_processes_as_by_one_and_the_first_writes(launcher, tmp_path):
    needs_geometric()
    launcher.run(2, train_links, tmp_path / "two")
    train_links(None, tmp_path / "one")
    one, two = (json.loads((tmp_path / name / "results.json").read_bytes())["results"][0] for name in ("one", "two"))
    assert one["nnz"] == two["nnz"] and abs(one["accuracy"] - two["accuracy"]) < 0.06
    here, there = (sorted(path.name for path in (tmp_path / name / "rigl-seed0").iterdir()) for name in ("one", "two"))
    assert here == there and "ignored-0000000004.json" in here and "masks-0000000001.dst" in here


def test_another_number_of_processes_does_not_go_on(launcher, tmp_path):
    more = {"compare": False, "method": "set"}
    launcher.run(2, stopped, tmp_path / "a", 7, more)
    with pytest.raises(ValueError, match=r"processes is 2 there, null here"):
        train(None, tmp_path / "a", "resume", more)


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"batch_size": 33}, "batch_size must be a multiple of the 2 processes"), ({"compare": "str"}, "train it in one process")],
)
def test_what_several_processes_cannot_do_is_refused(launcher, tmp_path, more, reason):
    with pytest.raises(RanksFailed, match=reason):
        launcher.run(2, train, tmp_path / "a", "new", more)
    assert not (tmp_path / "a").exists()


def test_a_folder_is_named_where_torchrun_starts_several(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="several processes need --out DIR"):
        commands.train_from_options({}, None, None, None, "new")


def test_a_gpu_is_asked_for_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UsageError, match="--device cuda needs a GPU"), processes.joined("cuda"):
        pass
