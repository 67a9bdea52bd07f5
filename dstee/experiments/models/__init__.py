"""Networks: one file each, entered in :data:`MODELS`; a new one is a file, and a line here."""

from dstee.experiments.models.gcn import gcn
from dstee.experiments.models.mlp import mlp
from dstee.experiments.models.registry import MODELS, build, make
from dstee.experiments.models.resnet import resnet20, resnet50, resnet50_cifar
from dstee.experiments.models.strided_cnn import strided_cnn
from dstee.experiments.models.vgg import vgg19, vgg_lite

__all__ = [
    "MODELS",
    "build",
    "gcn",
    "make",
    "mlp",
    "resnet20",
    "resnet50",
    "resnet50_cifar",
    "strided_cnn",
    "vgg19",
    "vgg_lite",
]

MODELS["mlp"] = mlp
MODELS["strided-cnn"] = strided_cnn
MODELS["vgg-lite"] = vgg_lite
MODELS["resnet20"] = resnet20
MODELS["vgg19"] = vgg19
MODELS["resnet50-cifar"] = resnet50_cifar
MODELS["resnet50"] = resnet50
MODELS["gcn"] = gcn
