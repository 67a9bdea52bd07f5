"""Published settings of methods, and where every number of them comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dstee._lookup import did_you_mean
from dstee.methods.base import Method
from dstee.methods.dst_ee import DSTEE
from dstee.methods.granet import GraNet
from dstee.methods.mest import MEST
from dstee.methods.rigl import RigL
from dstee.methods.snfs import SNFS
from dstee.methods.sparse_evolution import SET
from dstee.schedule import ConstantDrop, CosineDrop, Drop, UpdateSchedule

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """What somebody has trained with. The sparsity, the network and its optimizer are the caller's.

    Attributes:
        name: as :func:`preset` knows it.
        method: with its settings.
        every: optimizer steps between updates; with ``in_epochs``, epochs.
        stop: first step without updates, as a share of the training.
        drop: share of the active weights that an update swaps.
        distribution: as ``sparsify`` takes it.
        provenance: for each of these, and for each setting that is not the method's default, a source, or that it is ours.
            "training": the training that they belong to.
    """

    name: str
    method: Method
    every: int
    stop: float
    drop: Drop
    distribution: str
    provenance: Mapping[str, str]
    in_epochs: bool = False

    def schedule(self, steps: int, steps_per_epoch: int | None = None) -> UpdateSchedule:
        """The updates of a training of ``steps`` optimizer steps.

        Raises:
            ValueError: ``every`` counts epochs and ``steps_per_epoch`` is missing, or the training is too short for an update.
        """
        every = self.every
        if self.in_epochs:
            if steps_per_epoch is None:
                raise ValueError(f"{self.name} updates every {every} epochs: pass steps_per_epoch")
            every *= steps_per_epoch
        stop = round(self.stop * steps)
        if self.stop < 1:
            stop += 1  # the last update is at that step
        if every >= stop:
            raise ValueError(
                f"{self.name} updates every {every} steps, and of {steps} steps the first {stop - 1} may have updates: there "
                "would be none, train longer or choose another schedule"
            )
        return UpdateSchedule(every, stop, self.drop)

    def arguments(self, steps: int, steps_per_epoch: int | None = None) -> dict[str, Any]:
        """For ``dstee.sparsify(model, sparsity, **arguments)``: method, schedule and distribution.

        Raises:
            ValueError: as :meth:`schedule`.
        """
        schedule = self.schedule(steps, steps_per_epoch)
        return {"method": self.method, "schedule": schedule, "distribution": self.distribution}


_OURS = "ours: the paper does not say"
_ITOP = "ITOP repository (Liu et al. 2021)"
_GRANET = "GraNet repository (Liu et al. 2021)"
_RIGL = "RigL repository (Evci et al. 2020)"
_MEST = "MEST repository (Yuan et al. 2021), scripts/resnet32"
_SNFS = "sparse_learning repository (Dettmers & Zettlemoyer 2019)"

_ITOP_CIFAR = {
    "stop": f"{_ITOP}, sparselearning/core.py: updates never stop",
    "drop": f"{_ITOP}, sparselearning/core.py: --death-rate 0.5, CosineDecay with eta_min=0.005 over all steps",
    "distribution": f"{_ITOP}, README: --sparse_init ERK",
    "training": f"{_ITOP}, README: 250 epochs of batch 128, lr 0.1",
}
_ITOP_ORDER = f"{_ITOP}, sparselearning/core.py: step() updates after the optimizer's step, by the same gradient"
_ITOP_IMAGENET = {
    "every": f"{_ITOP}, README: --update_frequency 4000",
    "stop": f"{_ITOP}, ImageNet/main.py: CosineDecay over len(train_loader) * epochs, updates never stop",
    "drop": f"{_ITOP}, ImageNet/core.py: --prune-rate 0.5, CosineDecay with eta_min=0.005",
    "distribution": f"{_GRANET}, README, RigL (ITOP version): --sparse_init ERK; ITOP's own ImageNet/core.py has ER",
    "training": f"{_ITOP}, README: ResNet-50, 100 epochs, two GPUs with batch 64 each, lr 0.1, warmup 5, label smoothing 0.1",
}
_DST_EE = {
    "order": "DST-EE paper, Algorithm 1: an update takes the place of the step",
    "c": _OURS,
    "stop": "DST-EE paper, Algorithm 1: T_end is the number of training iterations",
    "drop": f"{_OURS}; as in the {_GRANET}, from which it takes its baselines",
    "distribution": "DST-EE paper: Erdos-Renyi-Kernel",
}
_GRANET_BOTH = {
    "stop": f"{_GRANET}, core.py: it prunes until the final epoch and swaps at every update to the end",
    "drop": f"{_GRANET}, core.py: rate 0.5, CosineDecay with eta_min=0.005 over all steps",
    "distribution": f"{_GRANET}, README: --sparse_init ERK",
}
_RIGL_DROP = "RigL paper, section 3: 0.3 with a cosine; the repository's flag --drop_fraction_anneal is constant by default"
_RIGL_ERK = "RigL paper, its ERK results; the repository's default is uniform with a dense first layer"
_MEST_BOTH = {
    "every": f"{_MEST}: --sp-mask-update-freq 5, in epochs",
    "stop": f"{_MEST}: --mask-update-decay-epoch 90-120 of 160 epochs: nothing is exchanged after epoch 120",
    "halve_at": f"{_MEST}: the bounds come closer at epoch 90, 0.75 of 120",
    "drop": "not used: exchange says how much",
    "distribution": f"{_MEST}, profiles: the same in all listed layers; exclude= the first convolution and the classifier",
    "training": f"{_MEST}: ResNet-32 on CIFAR-10, 160 epochs of batch 64, lr 0.1 cosine, warmup 8; it also updates at step 0",
}
_EM_S = f"{_MEST}/EM_S: --lower-bound 0.9, --upper-bound 0.85 at first: half of the density; at 95 % it is 0.90, so 1.0"
_EM = f"{_MEST}/EM: --lower-bound 0.92, --upper-bound 0.9 at first: a fifth of the density; 0.96 and 0.95 likewise"
_MEST_IMAGENET = {
    "every": f"ours: the repository has no ImageNet scripts; as for CIFAR ({_MEST})",
    "stop": "ours: as for CIFAR",
    "halve_at": "ours: as for CIFAR",
    "exchange": "ours: as for CIFAR",
    "soft": "ours: EM&S",
    "drop": "not used: exchange says how much",
    "distribution": "ours: as for CIFAR; exclude= the first convolution and the classifier",
    "training": "none is known",
}

_COSINE = CosineDrop(0.5, 0.005)
_ALL = (
    Preset("dst-ee-paper", DSTEE.paper(), 1000, 1.0, _COSINE, "erk", {
        **_DST_EE, "every": f"DST-EE paper, Figure 1: an update at iteration 1000; {_GRANET}: --update-frequency 1000",
        "training": "DST-EE paper: CIFAR, 160 or 250 epochs of batch 128, SGD, lr 0.1 cosine",
    }),
    Preset("dst-ee-paper-imagenet", DSTEE.paper(), 4000, 1.0, _COSINE, "erk", {
        **_DST_EE, "every": f"{_OURS}; {_GRANET}, README: --update_frequency 4000",
        "training": "DST-EE paper: ResNet-50, 100 epochs of batch 128",
    }),
    Preset("itop-cifar", RigL(order="after"), 4000, 1.0, _COSINE, "erk", {
        **_ITOP_CIFAR, "order": _ITOP_ORDER, "every": f"{_ITOP}, README, RigL-ITOP: --update_frequency 4000",
    }),
    Preset("set-itop-cifar", SET(), 1500, 1.0, _COSINE, "erk", {
        **_ITOP_CIFAR, "every": f"{_ITOP}, README, SET-ITOP: --update_frequency 1500",
    }),
    Preset("itop-imagenet", RigL(order="after"), 4000, 1.0, _COSINE, "erk", {**_ITOP_IMAGENET, "order": _ITOP_ORDER}),
    Preset("granet-cifar", GraNet(end=80 / 160), 1000, 1.0, _COSINE, "erk", {
        **_GRANET_BOTH, "every": f"{_GRANET}, README: --update-frequency 1000",
        "end": f"{_GRANET}, README: --init-prune-epoch 0 --final-prune-epoch 80 of 160 epochs",
        "training": f"{_GRANET}, README: CIFAR, 160 epochs of batch 128, lr 0.1",
    }),
    Preset("granet-imagenet", GraNet(end=30 / 100), 4000, 1.0, _COSINE, "erk", {
        **_GRANET_BOTH, "every": f"{_GRANET}, README: --update_frequency 4000",
        "end": f"{_GRANET}, README: --init-prune-epoch 0 --final-prune-epoch 30 of 100 epochs",
        "training": f"{_GRANET}, README: ResNet-50, 100 epochs",
    }),
    Preset("rigl-cifar", RigL(), 100, 75000 / 97656, CosineDrop(0.3), "erk", {
        "every": f"{_RIGL}, cifar_resnet: maskupdate_frequency 100", "drop": _RIGL_DROP, "distribution": _RIGL_ERK,
        "stop": f"{_RIGL}, cifar_resnet: maskupdate_end_step 75000 of max_steps 97656; it also updates at step 0",
        "training": f"{_RIGL}, cifar_resnet: wide ResNet, 250 epochs of batch 128, l2 5e-4",
    }),
    Preset("rigl-imagenet", RigL(), 100, 25000 / 32000, CosineDrop(0.3), "erk", {
        "every": f"{_RIGL}, imagenet_resnet: maskupdate_frequency 100", "drop": _RIGL_DROP, "distribution": _RIGL_ERK,
        "stop": f"{_RIGL}, imagenet_resnet: maskupdate_end_step 25000; RigL paper: of 32000 steps; it also updates at step 0",
        "training": "RigL paper: ResNet-50, 32000 steps of batch 4096; a smaller batch makes updates rarer in samples",
    }),
    Preset("snfs-cifar", SNFS(), 1, 1.0, _COSINE, "uniform", {
        "every": f"{_SNFS}, mnist_cifar/main.py: at_end_of_epoch()", "distribution": f"{_SNFS}, core.py: constant density",
        "stop": f"{_SNFS}, mnist_cifar/main.py: CosineDecay over len(train_loader) * epochs, updates never stop",
        "drop": f"{_SNFS}, core.py: rate 0.5, cosine to 0.005", "training": f"{_SNFS}, mnist_cifar/main.py: lr 0.1, l2 5e-4",
    }, in_epochs=True),
    Preset("mest-cifar", MEST(soft=True), 5, 0.75, ConstantDrop(0.0), "uniform", {
        **_MEST_BOTH, "soft": f"{_MEST}/EM_S: its second variant, EM&S", "exchange": _EM_S,
    }, in_epochs=True),
    Preset("mest-em-cifar", MEST(), 5, 0.75, ConstantDrop(0.0), "uniform", {**_MEST_BOTH, "exchange": _EM}, in_epochs=True),
    Preset("mest-imagenet", MEST(soft=True), 5, 0.75, ConstantDrop(0.0), "uniform", _MEST_IMAGENET, in_epochs=True),
)  # fmt: skip

PRESETS: Mapping[str, Preset] = MappingProxyType({one.name: one for one in _ALL})
"""All presets by name."""


def preset(name: str) -> Preset:
    """Published settings by name, such as "itop-cifar".

    Raises:
        ValueError: there is none of this name; the text has the nearest one.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
