"""Link prediction: which pairs of nodes have an edge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dstee._console import UsageError, needs
from dstee.experiments import models, processes
from dstee.experiments.data.graphs import Graph
from dstee.experiments.references import is_reference
from dstee.experiments.tasks.base import Task
from dstee.experiments.tasks.link_split import generator_of, split_links

if TYPE_CHECKING:
    from dstee.experiments.config import Config

__all__ = ["BATCHES_PER_EPOCH", "LinkPrediction", "accuracy", "area_under_curve"]

BATCHES_PER_EPOCH = 8
"""Whatever the size of the graph; the supervised edges are gone through batch by batch, over the ends of epochs."""
_SEEN = 2
_UNUSED = {"augment": False, "label_smoothing": 0.0, "precision": "float32", "train_limit": 0, "validation": 0}
"""Settings for images, and the values with which they do nothing."""


class LinkPrediction(Task):
    """Cross entropy over edges and as many pairs without one; judged by accuracy (logit above 0) and AUC on test edges.

    A training reports the epoch with the best accuracy on the validation edges. Only the two fully connected layers get masks.

    FC2 has one weight for each of the 128 units of FC1; at 98 %, uniform, two are active. Where both of these units are
    constant at first (2 of 10 seeds), a static mask learns nothing, with the accuracy of a guess; masks that change leave that
    behind.
    """

    key = "link-prediction"
    unit = "edges"
    reported = "best validation"

    @staticmethod
    def prepare(data: Graph, config: Config) -> Graph:
        for name, value in _UNUSED.items():
            if (got := getattr(config, name)) != value:
                raise UsageError(f"{name} is for images, and {data.name} is a graph: expected {value}, got {got}")
        return data

    def __init__(self, config: Config, seed: int, data: Graph, device: torch.device) -> None:
        self.config, self.seed, self.data, self.device = config, seed, data, device
        _roc_auc_score()  # before the first epoch is over
        self.split, self.negatives = split_links(data, seed)
        self.steps_per_epoch, self.position = BATCHES_PER_EPOCH, 0
        supervised = len(self.split.supervision)
        if config.batch_size > supervised:
            raise UsageError(f"batch_size must be at most the {supervised} supervised edges, got {config.batch_size}")
        self._batches = supervised // config.batch_size  # of one pass; what is over comes in another pass
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)
        offered = {"features": self.split.features, "message": self.split.message, "hidden": config.hidden}
        self.model = self.network = models.make(config.model, offered).to(device)
        if is_reference(config.model):
            self._try()

    def _try(self) -> None:
        """A user's network on two pairs."""
        name, pairs = self.config.model, self.example()[:2]
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                got = self.model(pairs)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(f"--model {name} cannot be called with int64 [2, 2], two pairs of nodes: {reason}") from error
        if not isinstance(got, Tensor) or got.shape != (2,):
            shape = list(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise UsageError(f"--model {name} must return logits [2] for two pairs of nodes, got {shape}")

    def sparse_arguments(self) -> dict[str, Any]:
        return {"exclude": list(getattr(self.model, "stays_dense", ()))}

    def loss(self, step: int) -> Tensor:
        self.position = (step - 1) % BATCHES_PER_EPOCH + 1
        pairs, targets = (processes.share(part) for part in self.batch(step))
        return self.loss_of(self.network(pairs), targets)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Pairs int64 [2 * batch_size, 2] and targets float32 of step ``step`` (from 1): edges, then as many without one."""
        number, place = divmod(step - 1, self._batches)
        if number != self._pass:
            self._pass = number
            self._order = torch.randperm(len(self.split.supervision), generator=generator_of(self.seed, "order", number))
        size = self.config.batch_size
        positives = self.split.supervision[self._order[place * size : (place + 1) * size]]
        return self._labelled(positives, self.negatives.draw(positives, generator_of(self.seed, "step", step)))

    def _labelled(self, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        targets = torch.cat([torch.ones(len(positives)), torch.zeros(len(negatives))])
        return torch.cat([positives, negatives]).to(self.device), targets.to(self.device)

    @torch.no_grad()
    def scores(self) -> dict[str, float]:
        split = self.split
        held_out = (
            self._labelled(split.test, split.test_negatives), self._labelled(split.validation, split.validation_negatives),
        )  # fmt: skip
        pairs, targets = (torch.cat(both) for both in zip(*held_out, strict=True))
        self.model.eval()
        logits = self.model(pairs)
        self.model.train()
        test, validation = zip(*(both.split([len(part) for _, part in held_out]) for both in (targets, logits)), strict=True)
        return {
            "accuracy": accuracy(*test), "auc": area_under_curve(*test),
            "validation": accuracy(*validation), "validation_auc": area_under_curve(*validation),
        }  # fmt: skip

    def example(self) -> Tensor:
        """The pairs of one training batch, over which the encoder's cost for all nodes is shared.

        FLOPs are those of the fully connected layers and of the weights of the convolutions (at each node), which stay dense;
        the sums over neighbours have no weights and are left out.
        """
        return self.batch(1)[0]

    def samples(self) -> list[tuple[Any, Any]]:
        return [self.batch(step) for step in range(1, _SEEN + 1)]

    def loss_of(self, outputs: Any, targets: Any) -> Tensor:
        return binary_cross_entropy_with_logits(outputs, targets)

    def state_dict(self) -> Mapping[str, Any]:
        return {"position": self.position}  # all else follows from the seed and the step

    def load_state_dict(self, state: Any) -> None:
        position = state["position"]
        if type(position) is not int or not 0 <= position <= BATCHES_PER_EPOCH:
            raise ValueError(f"the position in the epoch must be in 0..{BATCHES_PER_EPOCH}, got {position!r}")
        self.position = position


def accuracy(targets: Tensor, logits: Tensor) -> float:
    """Share of edges (target 1) with a logit above 0 and of pairs without one (target 0) with another."""
    return int(((logits > 0) == (targets > 0)).sum()) / len(targets)


def area_under_curve(targets: Tensor, logits: Tensor) -> float:
    """AUC: how often an edge (target 1) has a higher logit than a pair without one (target 0); ties count half.

    Logits that are no numbers are below all others.

    Raises:
        UsageError: scikit-learn is missing.
    """
    ranks = torch.unique(logits.nan_to_num(-torch.inf, torch.inf, -torch.inf), return_inverse=True)[1]  # infinite ones, too
    return float(_roc_auc_score()(targets.cpu().numpy(), ranks.cpu().numpy()))


def _roc_auc_score() -> Callable[..., Any]:
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise UsageError(needs("the AUC of link prediction", "scikit-learn", "cli")) from error
    found: Callable[..., Any] = roc_auc_score
    return found
