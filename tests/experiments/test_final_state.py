"""What a finished run leaves on disk: small, whole, enough for pictures and for the trained network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from experiments.test_train import DATA, Log, make_config
from support.command_server import TINY, digests

from dstee import CheckpointError, cli
from dstee.experiments import checkpoint, data, train
from dstee.experiments.checkpoint import CheckpointFolder
from dstee.experiments.config import Config
from dstee.experiments.final_state import FINAL, drop_checkpoints, final_masks, keep_final, load_final
from dstee.experiments.trial import Trial, task_of

pytestmark = pytest.mark.usefixtures("quiet_place")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("more", [{"compare": "dense,rigl,str,gmp"}, {"compare": "static,dst-ee", "batch_seeds": True}])
def test_the_network_and_its_masks_stay(more, tmp_path):
    config = make_config(**more, seeds=2)
    train.run_trials(config, DATA, tmp_path, Log())
    names = [f"{method}-seed{seed}" for method, seed in config.trials()]
    before = {name: CheckpointFolder(tmp_path / name, 1, pytest.fail).newest()[1] for name in names}
    masks = {name: final_masks(tmp_path / name, pytest.fail) for name in names}
    for _ in range(2):  # once more where it was cut short
        keep_final(tmp_path, config, pytest.fail)
        assert not list(tmp_path.rglob("checkpoint-*")) and {path.parent.name for path in tmp_path.rglob(FINAL)} == set(names)
        assert not list(tmp_path.glob("*-seeds*"))
        for name in names:
            found = load_final(tmp_path / name / FINAL)
            assert found.keys() == before[name]["model"].keys()
            assert all(torch.equal(found[key], value) for key, value in before[name]["model"].items())
            Trial(config, "dense", 0, DATA).model.load_state_dict(found)
            again = final_masks(tmp_path / name, pytest.fail)
            assert (again is None) == (masks[name] is None) == name.startswith("dense")
            if again is not None:
                assert again[:2] == masks[name][:2] and all(
                    torch.equal(again.masks[k], m) for k, m in masks[name].masks.items()
                )


def test_what_the_demo_leaves_is_small(tmp_path):
    """Five methods and three seeds of the digits' own network: the files of states alone."""
    config = Config.resolve({"data": "digits", "compare": True})
    dataset = task_of(config).prepare(data.load("digits", None), config)
    for method, seed in config.trials():
        (tmp_path / f"{method}-seed{seed}").mkdir()
        CheckpointFolder(tmp_path / f"{method}-seed{seed}", 1, pytest.fail).save(
            0, Trial(config, method, seed, dataset).saved()
        )
    before = size(tmp_path)
    keep_final(tmp_path, config, pytest.fail)
    assert size(tmp_path) < 3e6 < before


def test_a_finished_run_is_resumed_without_training(tmp_path, capsys):
    assert cli.main(["train", "--out", "a", "--compare", "dense,rigl", *TINY]) == 0
    assert not list(Path("a").rglob("checkpoint-*")) and len(list(Path("a").rglob(FINAL))) == 6
    first, held = capsys.readouterr().out, Path("a/results.json").read_bytes()
    assert cli.main(["train", "--out", "a", "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "finished already: there is nothing left to train" in out and err == ""
    assert first[first.index("accuracy %") :] == out[out.index("accuracy %") :] and Path("a/results.json").read_bytes() == held
    assert cli.main(["figure", "overlap", "a", "--between", "seeds", "--output", "overlap.png"]) == 0


def test_results_that_are_damaged_are_made_again(tmp_path, capsys):
    assert cli.main(["train", "--out", "a", *TINY]) == 0
    before = digests(Path("a"))
    for text in ("{", json.dumps({"results": []})):
        Path("a/results.json").write_text(text)
        assert cli.main(["train", "--out", "a", "--resume"]) == 0
        assert "results.json cannot be used" in capsys.readouterr().err and digests(Path("a")) == before


def test_a_checkpoint_that_is_damaged_leaves_no_final_state(tmp_path):
    config = make_config(method="rigl")
    train.run_trials(config, DATA, tmp_path, Log())
    for file in tmp_path.rglob("checkpoint-*"):
        file.write_bytes(file.read_bytes()[:100])
    told: list[str] = []
    keep_final(tmp_path, config, told.append)
    assert "none of 2 checkpoints is whole" in told[-1] and not list(tmp_path.rglob("*.dst"))
    drop_checkpoints(tmp_path, config)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda tree: tree.pop("round"), "holds no final state"),
        (lambda tree: tree.update(step=-1), "no numbers"),
        (lambda tree: tree["tensors"]["w"].update(shape=[-1]), "w is no tensor and no sparse weight: .*impossible shape"),
        (lambda tree: tree["tensors"]["w"].update(bits=torch.zeros(9, dtype=torch.uint8)), "has not the bits of one"),
        (lambda tree: tree["tensors"].update(w=3), "w is no tensor and no sparse weight"),
        (lambda tree: tree["tensors"]["w"].update(values=torch.ones(5)), "not as many values as its mask"),
        (lambda tree: tree["tensors"]["w"].update(values=None), "its values are no tensor"),
    ],
)
def test_what_is_no_final_state_is_refused(tmp_path, spoil, text):
    bits = torch.tensor([3], dtype=torch.uint8)
    tree = {"method": "set", "seed": 0, "step": 1, "round": 0,
            "tensors": {"w": {"shape": [2, 2], "bits": bits, "values": torch.tensor([1.0, 2.0])}}}  # fmt: skip
    checkpoint.save(tmp_path / "a", tree)
    assert load_final(tmp_path / "a")["w"].tolist() == [[1, 2], [0, 0]]
    spoil(tree)
    checkpoint.save(tmp_path / "b", tree)
    with pytest.raises(CheckpointError, match=text):
        load_final(tmp_path / "b")
    with pytest.raises(CheckpointError):
        load_final(tmp_path / "nowhere")
