"""Every setting either changes what is trained, or is refused in one line: of images and of graphs."""

import dataclasses

import pytest
import torch
from experiments.test_train import DATA
from support.tiny_graph import needs_geometric, tiny_graph

from dstee._console import UsageError
from dstee.experiments import checkpoint, data
from dstee.experiments.config import Config, setting
from dstee.experiments.data import Dataset, Source
from dstee.experiments.trial import Trial, task_of

TINY = {"hidden": [9, 7], "epochs": 2, "batch_size": 8, "every": 2, "sparsity": 0.6, "distribution": "uniform"}
OTHER = {
    "method": "rigl", "seed": 1, "sparsity": 0.5, "distribution": "erk", "c": 10.0, "c_rel": 10.0, "eps": 5.0, "every": 3,
    "drop_fraction": 0.6, "drop_schedule": "linear", "drop_floor": 0.2, "stop_fraction": 0.3, "order": "replace",
    "method_settings": {"regrow": False}, "model": "vgg-lite", "hidden": [8, 7], "train_limit": 40, "validation": 8,
    "augment": True, "epochs": 3, "batch_size": 6, "optimizer": "adam", "lr": 0.2, "lr_schedule": "constant",
    "warmup_epochs": 1, "momentum": 0.5, "weight_decay": 0.1, "nesterov": False, "label_smoothing": 0.2,
    "precision": "bfloat16",
}  # fmt: skip
"""Another value of each; those of the run as a whole are not among them."""
OF_IMAGES = {"train_limit", "validation", "augment", "label_smoothing", "precision", "model"}
OF_THE_RUN = {"data", "compare", "seeds", "batch_seeds", "device", "threads"}


def pictures():
    g = torch.Generator().manual_seed(5)
    x = torch.randn(48, 1, 8, 8, generator=g)
    return Dataset("pictures", x, torch.arange(48) % 4, x[:20], DATA.y_test, classes=4, pad=1)


def trained(given, whole):
    """The weights at the end, and what the history has beside them."""
    config = Config.resolve(given)
    trial = Trial(config, config.method, config.seed, task_of(config).prepare(whole, config))
    while not trial.is_done:
        trial.step()
    state = trial.state()
    scores = [sorted(r.get("scores", ())) for r in trial.history]
    return checkpoint.digest([state["model"], state["sparse"], scores])


def test_all_settings_are_here():
    free = {f.name for f in dataclasses.fields(Config) if setting(f).free}
    assert OTHER.keys() | OF_THE_RUN | free == {f.name for f in dataclasses.fields(Config)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As a run has it by default; on matrices this small more would wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    """Settings, data, and what is trained by them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATA_SETS, "pictures", Source(lambda folder: pictures(), {}))
        settings, whole = {"data": "pictures", **TINY}, pictures()
        yield settings, whole, trained(settings, whole)


@pytest.fixture(scope="module")
def graph():
    """The same of a graph."""
    needs_geometric()
    settings = {"data": "wiki_vote", "epochs": 2, "every": 4, "sparsity": 0.8, "batch_size": 40, "optimizer": "sgd"}
    whole = tiny_graph()
    return settings, whole, trained(settings, whole)


@pytest.mark.parametrize("name", OTHER)
def test_images(images, name):
    settings, whole, before = images
    more = {name: OTHER[name]} if name != "model" else {"model": "vgg-lite", "hidden": [512, 256]}
    assert trained({**settings, **more}, whole) != before


def test_methods_that_look_at_data_see_the_loss_that_is_trained(images):
    settings, whole, _ = images
    task = task_of(config := Config.resolve({**settings, "label_smoothing": 0.3}))(config, 0, whole, torch.device("cpu"))
    outputs, targets = torch.tensor([[2.0, 0.0, 0.0, 0.0]]), torch.tensor([0])
    logs = outputs.log_softmax(1)[0]
    assert task.loss_of(outputs, targets).item() == pytest.approx(-(0.7 * logs[0] + 0.3 * logs.mean()).item())


@pytest.mark.parametrize("name", sorted(OTHER.keys() - {"hidden"}))
def test_graphs(graph, name):
    settings, whole, before = graph
    value = {"distribution": "erk", "batch_size": 30}.get(name, OTHER[name])
    if name in OF_IMAGES:
        with pytest.raises(UsageError, match=rf"{name} is for images|model vgg-lite takes"):
            trained({**settings, name: value}, whole)
    else:
        assert trained({**settings, name: value}, whole) != before


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"optimizer": "adam", "momentum": 0.5}, "momentum would do nothing, adam has none"),
        ({"optimizer": "adam", "nesterov": False}, "nesterov would do nothing, adam has none"),
        ({"model": "resnet20", "hidden": [8]}, "hidden would do nothing, the model resnet20 has widths of its own"),
        ({"drop_schedule": "constant", "drop_floor": 0.1}, "drop_floor would do nothing, the drop schedule constant has none"),
        ({"drop_fraction": 0.1, "drop_floor": 0.2}, r"drop_floor must be at most drop_fraction 0\.1, got 0\.2"),
        ({"ignored_steps": 5}, "ignored_steps would do nothing, ignored_at names no updates"),
        ({"compare": True, "method": "rigl"}, "method would do nothing, compare names the methods"),
        ({"compare": True, "label": "mine"}, "label would give all methods of the comparison one name"),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs must be less than epochs 5, got 5"),
    ],
)
def test_what_would_do_nothing_is_refused(given, reason):
    with pytest.raises(UsageError, match=reason):
        Config.resolve(given)


def test_defaults_of_data_are_no_contradictions():
    for name in data.DATA_SETS:
        config = Config.resolve({"data": name})
        assert Config.resolve(config.to_dict()) == config
