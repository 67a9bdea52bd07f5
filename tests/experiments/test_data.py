"""Data sets, the order of the samples, and the configuration."""

import copy
import json
import os

import numpy as np
import pytest
import torch

from dstee import cli
from dstee._console import UsageError
from dstee.experiments.config import Config
from dstee.experiments.data import BatchOrder, load


def test_digits_are_split_once_and_for_all():
    data = load("digits", None)
    assert data.x_train.shape == (1297, 64) and data.x_test.shape == (500, 64)
    assert abs(float(data.x_train.mean())) < 1e-5 and abs(float(data.x_train.std()) - 1) < 1e-3
    assert data.y_test.bincount().min() >= 30 and data.digest == load("digits", None).digest


def mnist_arrays():
    return {
        "x_train": np.zeros((60000, 28, 28), np.uint8),
        "y_train": np.zeros(60000, np.uint8),
        "x_test": np.zeros((10000, 28, 28), np.uint8),
        "y_test": np.zeros(10000, np.uint8),
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"y_test": None}, "array y_test is missing"),
        ({"y_test": np.full(10000, 10, np.uint8)}, "labels outside 0..9"),
        ({"y_test": np.zeros(10000)}, "y_test is float64"),
        ({"y_test": np.zeros(999, np.uint8)}, r"y_test is uint8 \[999\]"),
        ({"y_test": np.zeros(200000, np.uint8)}, "array y_test would take"),
        ({"y_test": np.array([print], dtype=object)}, "y_test is object"),
        ({"y_test": np.full(10000, True)}, "y_test is bool"),
        ({"x_test": np.full((10000, 28, 28), -1, np.int16)}, "x_test has pixels outside 0..255"),
        ({"x_test": np.full((10000, 28, 28), 256, np.uint16)}, "x_test has pixels outside 0..255"),
    ],
)
def test_unusable_mnist_files_are_refused(tmp_path, change, reason):
    arrays = {key: value for key, value in {**mnist_arrays(), **change}.items() if value is not None}
    np.savez_compressed(tmp_path / "mnist.npz", allow_pickle=True, **arrays)
    with pytest.raises(UsageError, match=reason):
        load("mnist", str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
def test_damaged_mnist_files_are_refused(tmp_path, content):
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"mnist\.npz is not a usable mnist\.npz"):
        load("mnist", str(tmp_path))


@pytest.mark.skipif("DSTEE_DATA" not in os.environ, reason="needs mnist.npz: set DSTEE_DATA to its folder")
def test_mnist_trains(tmp_path, capsys):
    options = ["--hidden", "32", "--epochs", "1", "--batch-size", "500", "--sparsity", "0.9", "--out", str(tmp_path / "a")]
    assert cli.main(["train", "--data", "mnist", *options]) == 0
    assert json.loads((tmp_path / "a" / "results.json").read_text())["results"][0]["accuracy"] > 0.8
    assert "60,000 training and 10,000 test images" in capsys.readouterr().out


def test_every_epoch_sees_every_sample_once_in_another_order():
    order = BatchOrder(24, 6, seed=1)
    epochs = [torch.cat([order.next() for _ in range(4)]) for _ in range(3)]
    assert all(torch.equal(e.sort().values, torch.arange(24)) for e in epochs)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_order_continues_from_any_position_and_ignores_the_global_generator():
    reference, order = BatchOrder(25, 6, seed=1), BatchOrder(25, 6, seed=1)
    for _ in range(13):
        torch.manual_seed(7)
        restored = BatchOrder(25, 6, seed=99)
        restored.load_state_dict(copy.deepcopy(order.state_dict()))
        assert torch.equal(restored.next(), reference.next())
        order.next()


def test_order_refuses_states_of_other_data():
    order = BatchOrder(24, 6, seed=1)
    for other in (BatchOrder(25, 6, seed=1), BatchOrder(12, 6, seed=1)):
        with pytest.raises(ValueError, match="permutation"):
            order.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="position"):
        order.load_state_dict({**order.state_dict(), "position": 5})
    with pytest.raises(UsageError, match="at most the 24 training samples, got 25"):
        BatchOrder(24, 25, seed=1)


def test_configuration_survives_json():
    config = Config.resolve({"compare": True, "hidden": [9, 7], "lr": 1 / 3})
    assert Config.resolve(json.loads(json.dumps(config.to_dict()))) == config


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(UsageError) as caught:
        Config.resolve({"sparsty": 0.5, "epochs": 0, "lr": float("nan"), "method": "adam", "hidden": [True], "nesterov": 1})
    for part in (
        "did you mean 'sparsity'",
        "epochs must be >= 1",
        "lr must be a finite",
        "method must be one of",
        "hidden",
        "nesterov",
    ):
        assert part in str(caught.value)


def test_the_help_says_which_data_have_other_defaults(capsys):
    """Data of one's own have the general ones, which come last."""
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "strided-cnn for cifar10-jpeg, cifar10, cifar100; resnet50 for imagenet;" in told and "else mlp)" in told
    assert "on for cifar10-jpeg, cifar10, cifar100, imagenet; else off)" in told and "(default: 5 for imagenet; else 0)" in told
    assert Config.resolve({"data": "math:sqrt"}).epochs == 60 and "50 for wiki_vote, ia_email_eu, email_enron; else 60)" in told
