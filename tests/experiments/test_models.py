"""The networks: sizes that were published, other people's code as an oracle, and training that resumes to the bit."""

import copy
import dataclasses

import pytest
import torch
from support.torchvision_oracle import import_torchvision
from torch import nn

from dstee import CheckpointError
from dstee._console import UsageError
from dstee.experiments import checkpoint, models
from dstee.experiments.config import Config
from dstee.experiments.data import DATA_SETS, Dataset, Source
from dstee.experiments.trial import Trial

pytestmark = pytest.mark.usefixtures("one_thread")

CONVOLUTIONAL = ("strided-cnn", "vgg-lite", "resnet20", "vgg19", "resnet50-cifar", "resnet50")


def build(name, shape=(3, 32, 32), classes=10):
    torch.manual_seed(0)
    return models.build(name, shape, classes, (16,))


def counts(model):
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return weights, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "weights", "parameters"),
    [
        # Kernels by hand: 27 * 32 + 288 * 64 + 576 * 128 + 128 * 10; 448 of batch norm and 10 biases.
        ("strided-cnn", (3, 32, 32), 10, 94_304, 94_762),
        # 27 * 32 + 288 * 64 + 576 * 128 + 1152 * 128 + 128 * 10; 704 and 10.
        ("vgg-lite", (3, 32, 32), 10, 241_760, 242_474),
        # He et al. (2016), Table 6: 0.27 M. 432 + 6 * 2304 + 4608 + 5 * 9216 + 18432 + 5 * 36864 + 640.
        ("resnet20", (3, 32, 32), 10, 268_336, 269_722),
        # 20.0 M; Wang, Zhang and Grosse (2020), GraSP, prune these.
        ("vgg19", (3, 32, 32), 10, 20_024_000, 20_035_018),
        # torchvision and kuangliu/pytorch-cifar say so.
        ("resnet50-cifar", (3, 32, 32), 10, 23_467_712, 23_520_842),
        ("resnet50", (3, 224, 224), 1000, 25_502_912, 25_557_032),
    ],
)
def test_a_network_has_the_size_that_was_published(name, shape, classes, weights, parameters):
    with torch.device("meta"):
        model = models.build(name, shape, classes, ())
    assert counts(model) == (weights, parameters)


def test_resnet50_computes_what_torchvision_computes():
    torchvision = import_torchvision()
    torch.manual_seed(5)
    theirs = torchvision.models.resnet50(num_classes=7)
    torch.manual_seed(5)
    ours = models.build("resnet50", (3, 64, 64), 7, ())
    for (name, w), (their_name, v) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == their_name and torch.equal(w, v)  # the same initial weights, too
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    small = models.build("resnet50-cifar", (3, 16, 16), 7, ())
    small.load_state_dict(theirs.state_dict())
    assert torch.allclose(small(x[:, :, :16, :16]), theirs(x[:, :, :16, :16]), atol=1e-5)


def test_vgg19_is_torchvisions_without_biases_and_with_one_classifier():
    torchvision = import_torchvision()
    with torch.device("meta"):
        theirs, ours = torchvision.models.vgg19_bn().features, models.build("vgg19", (3, 32, 32), 10, ())

    def plan(layers):
        kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)
        return [(type(m), tuple(getattr(m, "weight", torch.empty(0)).shape)) for m in layers if isinstance(m, kinds)]

    assert plan(ours) == plan(theirs)[:-1]  # the fifth pooling is the mean


def test_resnet20_by_plain_functions():
    """The forward again, from the state alone, and its shortcut by assignment into zeros."""
    model = build("resnet20").eval()
    state = model.state_dict()
    f = nn.functional

    def unit(x, conv, norm, stride=1):
        x = f.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        rest = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return f.batch_norm(x, *rest)

    x = torch.randn(2, 3, 32, 32)
    y = f.relu(unit(x, "conv1", "bn1"))
    for layer, width in (("layer1", 16), ("layer2", 32), ("layer3", 64)):
        for i in range(3):
            stride = 2 if i == 0 and width > 16 else 1
            z = unit(
                f.relu(unit(y, f"{layer}.{i}.conv1", f"{layer}.{i}.bn1", stride)), f"{layer}.{i}.conv2", f"{layer}.{i}.bn2"
            )
            if stride == 2:
                shortcut = torch.zeros_like(z)
                shortcut[:, width // 4 : width // 4 + y.shape[1]] = y[:, :, ::2, ::2]
                y = shortcut
            y = f.relu(y + z)
    expected = f.linear(f.adaptive_avg_pool2d(y, 1).flatten(1), state["fc.weight"], state["fc.bias"])
    assert torch.allclose(model(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_images_that_do_not_fit_are_refused(name):
    for shape, reason in (((784,), r"takes images \[channels, height, width\].*\[784\]"),
                          ((32, 32, 3), "takes images of at least"), ((0, 64, 64), "takes images with channels")):  # fmt: skip
        with pytest.raises(UsageError, match=f"--model {name} {reason}"):
            build(name, shape)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_smallest_images_and_grey_ones_pass(name):
    side = {"strided-cnn": 5, "vgg19": 16, "resnet50": 32}.get(name, 8)
    assert build(name, (1, side, side), 3)(torch.randn(2, 1, side, side)).shape == (2, 3)
    with pytest.raises(UsageError, match=rf"at least {side} x {side} pixels, a sample has the shape \[1, {side}, {side - 1}\]"):
        build(name, (1, side, side - 1))


@pytest.fixture
def small_images(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=g)
    y = torch.arange(24) % 4
    images = Dataset("small", x[:16], y[:16], x[16:], y[16:], classes=4, mean=(120.0,) * 3, std=(70.0,) * 3)
    monkeypatch.setitem(DATA_SETS, "small", Source(lambda folder: images, {"batch_size": 4, "epochs": 3, "every": 2}))
    return images


@pytest.mark.parametrize("name", ["strided-cnn", "vgg-lite", "resnet20"])
def test_training_resumes_to_the_bit(name, small_images, tmp_path):
    """Batch norm's means and counters, the place in the crops and flips, and the masks are all part of the state."""
    config = Config.resolve({"data": "small", "model": name, "sparsity": 0.8, "augment": True, "lr": 0.05})
    straight = Trial(config, "dst-ee", 3, small_images)
    for step in range(straight.total):
        if step == 5:
            checkpoint.save(tmp_path / "a", copy.deepcopy(straight.saved()))
        straight.step()
    torch.manual_seed(99)
    resumed = Trial(config, "dst-ee", 3, small_images)
    resumed.restore(tmp_path / "a", checkpoint.load(tmp_path / "a"))
    while resumed.step_number < resumed.total:
        resumed.step()
    norms = [n for n in straight.model.state_dict() if n.endswith("num_batches_tracked")]
    assert norms and straight.model.state_dict()[norms[0]].item() == 12
    assert checkpoint.digest(resumed.state()) == checkpoint.digest(straight.state())
    plain = Trial(dataclasses.replace(config, augment=False), "dst-ee", 3, small_images)
    assert plain.step()[0] != Trial(config, "dst-ee", 3, small_images).step()[0]


def test_a_checkpoint_with_other_batch_norms_is_refused(small_images, tmp_path):
    config = Config.resolve({"data": "small", "model": "strided-cnn", "sparsity": 0.8})
    trial = Trial(config, "rigl", 0, small_images)
    trial.step()
    for name, wrong, reason in (
        ("norm1.num_batches_tracked", torch.tensor(1.0), "norm1.num_batches_tracked is float32"),
        ("norm2.running_mean", torch.zeros(63), r"norm2.running_mean is float32 \[63\], expected float32 \[64\]"),
    ):
        saved = trial.saved()
        tree = {**saved, "model": {**saved["model"], name: wrong}}
        with pytest.raises(CheckpointError, match=reason):
            Trial(config, "rigl", 0, small_images).restore(tmp_path, tree)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg19", "resnet50-cifar", "resnet50"])
def test_large_networks_train(name, small_images):
    config = Config.resolve({"data": "small", "model": name, "sparsity": 0.9, "lr": 1e-3, "label_smoothing": 0.1})
    trial = Trial(config, "dst-ee", 0, small_images)
    for _ in range(2):
        loss, _ = trial.step()
    assert 0 < loss < 5 and trial.task.scores()["accuracy"] <= 1
