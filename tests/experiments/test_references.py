"""A user's own networks and data, named on the command line: used where they serve, refused in one line where not."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from support.command_server import TINY

from dstee import cli
from dstee._console import UsageError
from dstee.experiments import data, models
from dstee.experiments.config import Config
from dstee.experiments.data import Dataset
from dstee.experiments.references import load_reference

pytestmark = pytest.mark.usefixtures("quiet_place", "one_thread")

MINE = """
import os
import numpy as np
import torch
from torch import nn
from dstee.experiments.data import Dataset

def net(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], 16), nn.ReLU(),
                         nn.Linear(16, num_classes))

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, classes))

def tensors(x=None, y=None, x_test=None, y_test=None):
    g = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, 3, 2, 2, generator=g), torch.arange(20) % 4
    default = (images[:16], labels[:16], images[16:], labels[16:])
    return tuple(d if given is None else given for d, given in zip(default, (x, y, x_test, y_test)))

def load():
    return tensors()

def load_arrays(data_dir):
    assert data_dir == "somewhere"
    return [part.numpy().astype("f8" if part.is_floating_point() else "u2") for part in tensors()]

def pixels():
    x = torch.arange(192, dtype=torch.uint8).view(16, 3, 2, 2)
    return Dataset("mine", x, torch.arange(16) % 4, x[:4], torch.arange(4), classes=4, mean=(90.0,) * 3, std=(50.0,) * 3)

one = Net(4)

def same():
    return one
"""


@pytest.fixture(autouse=True)
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    yield
    for name in [name for name in sys.modules if name.startswith(("mine", "evil", "broken"))]:
        del sys.modules[name]


SMALL = ["--batch-size", "4", "--epochs", "2", "--sparsity", "0.5", "--every", "2"]


def said(capsys):
    return capsys.readouterr().err.strip()


def results():
    return json.loads(Path("run/results.json").read_text())["results"][0]


@pytest.mark.parametrize(("source", "network"), [("load", "net"), ("load_arrays", "Net"), ("pixels", "net")])
def test_own_functions_and_classes_train_and_resume(source, network, capsys):
    options = ["--data", f"mine:{source}", "--model", f"mine:{network}", "--data-dir", "somewhere", "--out", "run"]
    assert cli.main(["train", *options, *SMALL]) == 0
    assert "16 training and 4 test images" in capsys.readouterr().out
    before = results()
    assert before["numel"] == 12 * 16 + 16 * 4
    assert cli.main(["train", *options, "--resume"]) == 0
    assert results() == before


@pytest.mark.slow
def test_own_data_and_networks_are_proved_to_resume(capsys):
    assert cli.main(["verify-resume", "--data", "mine:load", "--model", "mine:net", *SMALL]) == 0
    assert "identical to the last bit" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["data", "model"])
def test_a_run_folder_executes_nothing_that_the_user_does_not_name(name, tmp_path, capsys):
    (tmp_path / "evil.py").write_text("open('executed', 'w').close()\ndef make(hidden=()): pass\n")
    assert cli.main(["train", "--out", "run", *TINY]) == 0
    manifest = json.loads((tmp_path / "run" / "config.json").read_text())
    capsys.readouterr()
    for reference in ("evil:make", "os:abort"):
        manifest["config"][name] = manifest["identity"][name] = reference
        (tmp_path / "run" / "config.json").write_text(json.dumps(manifest))
        for options in ([], ["--data", "digits", "--epochs", "3"], ["--data", "mine:load", "--model", "mine:net"]):
            assert cli.main(["train", "--out", "run", "--resume", *options]) == 2
            text = said(capsys)
            assert f"names code that would be run, {name} {reference}: if you trust it, pass --{name} {reference} again" in text
            assert text.count("\n") == 0
        assert cli.main(["plot", "run"]) == 0  # only reads
    assert not os.path.exists("executed") and "evil" not in sys.modules
    capsys.readouterr()
    manifest["config"][name] = manifest["identity"][name] = "evil:make"
    (tmp_path / "run" / "config.json").write_text(json.dumps(manifest))
    assert cli.main(["train", "--out", "run", "--resume", f"--{name}", "evil:make"]) == 2  # named: imported, and of no use
    assert os.path.exists("executed") and "must return" in said(capsys)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("missing:make", "ModuleNotFoundError"), ("mine:", "AttributeError"), (":net", "ValueError: Empty module name"),
        ("mine:one.weight", "AttributeError"), ("mine:MINE", "AttributeError"), (".mine:net", "TypeError"),
        ("mine:net:x", "AttributeError"), ("mine:os.sep", "is no function but a str"), ("broken:x", "SyntaxError"),
        ("broken_exit:x", "SystemExit: 3"), ("broken_name:x", "NameError"), ("os.path/../evil:x", "ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_references_to_nothing_are_refused(reference, reason, tmp_path, capsys):
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "broken_exit.py").write_text("raise SystemExit(3)")
    (tmp_path / "broken_name.py").write_text("nothing")
    path = list(sys.path)
    for option in ("--data", "--model"):
        with pytest.raises(UsageError, match=reason):
            load_reference(reference, option)
        assert cli.main(["train", option, reference, "--out", "run"]) == 2
        text = said(capsys)
        assert f"{option} {reference}" in text and text.count("\n") == 0 and not os.path.exists("run")
    assert sys.path == path


def network(source, tmp_path, **given):
    (tmp_path / "mine_net.py").write_text(f"import torch\nfrom torch import nn\n{source}\n")
    sys.modules.pop("mine_net", None)
    shape = given.get("shape", (3, 2, 2))
    return models.build("mine_net:make", shape, 4, (8,))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def make(depth): pass", "takes depth, which these data do not have"),
        ("def make(input_shape, /): return nn.Linear(1, 1)", "raised TypeError"),
        ("def make(): return 3", "must return a torch.nn.Module, got int"),
        ("def make(): return nn.Linear", "must return a torch.nn.Module, got type"),
        ("def make(): raise KeyError('x')", "raised KeyError: 'x'"),
        ("def make(): return nn.Linear(2, 4)", r"must return scores of \[1, 4\] for one sample, got \[1, 3, 2, 4\]"),
        (
            "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(5, 4))",
            r"cannot be called with a tensor of \[1, 3, 2, 2\]",
        ),
        (
            "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))",
            r"scores of \[1, 4\] for one sample, got \[1, 3\]",
        ),
        ("class make(nn.Module):\n    def forward(self, x): return x, x", "for one sample, got tuple"),
        ("class make(nn.Module): pass", "NotImplementedError"),
        ("made = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))\ndef make(): return made", "must make a new one"),
    ],
)
def test_networks_of_no_use_are_refused(source, reason, tmp_path):
    with pytest.raises(UsageError, match=reason):
        network(source, tmp_path)
        models.build("mine_net:make", (3, 2, 2), 4, ())


def test_trying_a_network_leaves_no_trace(tmp_path):
    source = (
        "def make():\n    m = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout())\n"
        "    m[3].eval()\n    return m"
    )
    torch.manual_seed(1)
    model = network(source, tmp_path)
    after = torch.get_rng_state()
    assert [m.training for m in model] == [True, True, True, False] and model[2].num_batches_tracked == 0
    torch.manual_seed(1)
    torch.nn.Linear(12, 4)
    assert torch.equal(after, torch.get_rng_state())


X, Y = torch.zeros(16, 3), torch.arange(16) % 4


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (None, "must return four tensors.*got NoneType"),
        ((X, Y, X), "must return four tensors"),
        ((X, Y.float(), X, Y), "labels must be whole numbers"),
        ((X, Y > 1, X, Y), "labels must be whole numbers"),
        ((X, Y[:, None], X, Y), "labels must be whole numbers"),
        ((X, Y[:9], X, Y), r"\[16, 3\] samples do not fit \[9\] labels"),
        ((X, Y, X[:, :2], Y), r"\[16, 2\] samples do not fit"),
        ((X[:, :0], Y, X[:, :0], Y), "do not fit"),
        ((X[0], Y[:3], X[0], Y[:3]), "do not fit"),
        ((X, Y, X[:0], Y[:0]), "samples to train on and to test on, got 16 and 0"),
        ((X, Y - 1, X, Y), "labels must be int64 in 0..3, got torch.int64 in -1..2"),
        ((X, Y, X, Y * 10**9), "labels must number the classes from 0, got 3000000000"),
        ((X + float("nan"), Y, X, Y), "samples must be finite, 48 numbers"),
        ((X, Y, X / 0 + 1 / torch.zeros(3), Y), "samples must be finite"),
        ((X + 1j, Y, X, Y), "real numbers, got torch.complex64"),
        ((X.to("meta"), Y, X, Y), "cannot be used"),
        ((X.numpy().astype(object), Y, X, Y), "real numbers, got object"),
        ((X.numpy().astype(">f4"), Y, X, Y), "cannot be used"),
        (("x", Y, X, Y), "got str"),
        (Dataset("a", X, Y, X, Y, classes=3), r"labels must be int64 in 0\.\.2"),
        (Dataset("a", X.byte(), Y, X.byte(), Y), "float32, or uint8 with mean and std, got torch.uint8"),
        (Dataset("a", X.byte(), Y, X.byte(), Y, mean=(1.0,), std=(1.0, 2.0)), "std must have a number for each of the 3"),
        (Dataset("a", X.byte(), Y, X.byte(), Y, mean=(1.0,)), "std must have a number"),
        (Dataset("a", X, Y, X, Y, view=(2, 2)), r"cannot be seen as \[2, 2\]"),
    ],
)  # fmt: skip
def test_data_of_no_use_are_refused(returned, reason, monkeypatch):
    load_reference("mine:load", "--data")
    monkeypatch.setattr(sys.modules["mine"], "load", lambda: returned)
    with pytest.raises(UsageError, match=reason) as caught:
        data.load("mine:load", None)
    assert str(caught.value).startswith("--data mine:load")


def test_what_own_data_raise_is_told_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "mine_raises.py").write_text(
        "def load(data_dir): raise OSError(2, 'No such file', data_dir)\ndef more(a): pass\n"
    )
    for reference, reason in (("mine_raises:load", "raised FileNotFoundError"), ("mine_raises:more", "asks for a, but")):
        assert cli.main(["train", "--data", reference, "--data-dir", "there", "--out", "run"]) == 2
        assert f"--data {reference} {reason}" in said(capsys) and not os.path.exists("run")


def test_other_data_from_the_same_function_do_not_resume(tmp_path, capsys):
    assert cli.main(["train", "--data", "mine:load", "--out", "run", *SMALL]) == 0
    (tmp_path / "mine.py").write_text(MINE.replace("manual_seed(0)", "manual_seed(1)"))
    del sys.modules["mine"]
    capsys.readouterr()
    assert cli.main(["train", "--data", "mine:load", "--out", "run", "--resume"]) == 2
    assert "data" in said(capsys)


def test_settings_may_name_references_and_are_read_back():
    config = Config.resolve({"data": "mine:load", "model": "mine:net"})
    assert Config.resolve(json.loads(json.dumps(config.to_dict()))) == config
