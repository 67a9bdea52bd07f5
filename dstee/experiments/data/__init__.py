"""Data sets: one file each, entered in :data:`DATA_SETS`; a new one is a file, and a line here."""

from functools import partial

from dstee.experiments.data.batch_order import BatchOrder, BatchOrderState
from dstee.experiments.data.cifar import CIFAR10, CIFAR100, load_cifar
from dstee.experiments.data.cifar10_jpeg import NOTE, load_cifar10_jpeg
from dstee.experiments.data.digits import load_digits
from dstee.experiments.data.graphs import Graph, load_graph
from dstee.experiments.data.image_folders import load_imagenet
from dstee.experiments.data.images import Dataset, Images
from dstee.experiments.data.mnist import load_mnist
from dstee.experiments.data.registry import DATA_SETS, Source, find_source, load

__all__ = ["DATA_SETS", "BatchOrder", "BatchOrderState", "Dataset", "Graph", "Images", "Source", "find_source", "load"]

# Digits at 98 %: 3,328 of 166,400 weights are active, and where they are makes a difference.
_SMALL = {"model": "mlp", "hidden": (512, 256)}
DATA_SETS["digits"] = Source(load_digits, {**_SMALL, "epochs": 60, "batch_size": 64, "every": 20, "checkpoint_every": 400})
DATA_SETS["mnist"] = Source(load_mnist, {**_SMALL, "epochs": 5, "batch_size": 128, "every": 40, "checkpoint_every": 1000})

# 30 epochs of all images take a quarter of an hour on one core: below 5,000 steps the methods do not come apart.
_CIFAR = {"model": "strided-cnn", "augment": True, "epochs": 30, "batch_size": 64, "every": 50, "checkpoint_every": 1000}
DATA_SETS["cifar10-jpeg"] = Source(load_cifar10_jpeg, _CIFAR, note=NOTE)
DATA_SETS["cifar10"] = Source(partial(load_cifar, CIFAR10), _CIFAR)
DATA_SETS["cifar100"] = Source(partial(load_cifar, CIFAR100), _CIFAR)
DATA_SETS["imagenet"] = Source(load_imagenet, {
    "model": "resnet50", "augment": True, "epochs": 100, "warmup_epochs": 5, "label_smoothing": 0.1, "batch_size": 128,
    "every": 1000, "checkpoint_every": 2000,
})  # fmt: skip

# An epoch has 8 steps: masks change once in each.
_LINKS = {
    "model": "gcn", "hidden": (32, 32, 128), "distribution": "uniform", "epochs": 50, "batch_size": 2048, "optimizer": "adam",
    "lr": 1e-2, "weight_decay": 0.0, "every": 8, "checkpoint_every": 400,
}  # fmt: skip
for _name, _paper in (("wiki_vote", "wiki-talk"), ("ia_email_eu", "ia-email"), ("email_enron", "ia-email")):
    _note = f"the graph {_name} stands in for the paper's {_paper}, which is another one"
    DATA_SETS[_name] = Source(partial(load_graph, _name, _note), _LINKS, task="link-prediction", note=_note)
