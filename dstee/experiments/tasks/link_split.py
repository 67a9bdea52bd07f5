"""The edges of a graph in parts that share none, and pairs of nodes without an edge."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dstee._console import UsageError, needs
from dstee.experiments.data.graphs import Graph

__all__ = ["LinkSplit", "Negatives", "generator_of", "split_links"]

SUPERVISED = 0.4
"""Share of the training edges that are predicted; the others pass messages. An edge that did both would be seen in its own
prediction: the network would learn to look for it, and fail on edges that pass none."""
RANDOM_FEATURES = 31
_STREAMS = {"split": 0, "features": 1, "validation": 2, "test": 3, "order": 4, "step": 5}
_TRIES = 200


def generator_of(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A generator of the CPU that depends on these three alone; different ones have unrelated numbers."""
    state = np.random.SeedSequence((seed, _STREAMS[stream], index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@dataclass(frozen=True)
class LinkSplit:
    """What a training of one seed sees of a graph; pairs are int64 [n, 2], positives of it edges with the lower node first.

    Attributes:
        message: edges over which the encoder passes messages, in training and in tests. supervision: training edges that are
            predicted. validation, test: edges that are predicted to choose and to report.
        validation_negatives, test_negatives: pairs without an edge, as many, the same throughout.
        features: float32 [nodes, 32]: standard normal numbers, and log(1 + degree) over the message edges.
    """

    message: Tensor
    supervision: Tensor
    validation: Tensor
    test: Tensor
    validation_negatives: Tensor
    test_negatives: Tensor
    features: Tensor


class Negatives:
    """Draws pairs of nodes that have no edge in the whole graph, whichever part it is of; no loops.

    Half of them are uniform over all pairs. Those would be told from edges by degree alone, so the other half has one end of a
    positive, and another node drawn in proportion to its degree over the message edges (held-out edges do not count).

    ``torch_geometric.utils.negative_sampling`` has no such second half, and draws from Python's global generator, which a
    training that is resumed would find elsewhere.

    Args:
        graph: the whole one. message: int64 [n, 2], its edges that pass messages.
    """

    def __init__(self, graph: Graph, message: Tensor) -> None:
        self.graph = graph
        self._codes = graph.edges[:, 0] * graph.nodes + graph.edges[:, 1]  # sorted, as the edges are
        self._ends = message.flatten()  # each node as often as it has edges

    def draw(self, positives: Tensor, generator: torch.Generator) -> Tensor:
        """int64 [n, 2]: as many as ``positives`` [n, 2]; the first n // 2 are uniform, each of the others keeps a random end of
        the positive in its place.

        Raises:
            UsageError: the graph has hardly a pair without an edge.
        """
        drawn = torch.empty_like(positives)
        places = torch.arange(len(positives))
        kept = positives
        for _ in range(_TRIES):
            pairs = self._proposed(kept, places >= len(positives) // 2, generator)
            good = ~self.are_edges(pairs)
            drawn[places[good]] = pairs[good]
            places = places[~good]
            if not len(places):
                return drawn
            # A node may have an edge to nearly all others: another positive may take its place.
            kept = positives[torch.randint(len(positives), (len(places),), generator=generator)]
        raise UsageError(f"{self.graph.name}: hardly a pair of its {self.graph.nodes} nodes is without an edge to predict")

    def _proposed(self, kept: Tensor, keeps: Tensor, generator: torch.Generator) -> Tensor:
        n = len(kept)
        uniform = torch.randint(self.graph.nodes, (n, 2), generator=generator)
        side = torch.randint(2, (n, 1), generator=generator)
        others = self._ends[torch.randint(len(self._ends), (n, 1), generator=generator)]
        return torch.where(keeps[:, None], torch.cat([kept.gather(1, side), others], 1), uniform)

    def are_edges(self, pairs: Tensor) -> Tensor:
        """bool [n]: whether each of int64 [n, 2] pairs, in any order, is an edge of the graph or a loop."""
        codes = pairs.min(1).values * self.graph.nodes + pairs.max(1).values
        found = torch.searchsorted(self._codes, codes).clamp_(max=len(self._codes) - 1)
        return (self._codes[found] == codes) | (pairs[:, 0] == pairs[:, 1])


def split_links(graph: Graph, seed: int) -> tuple[LinkSplit, Negatives]:
    """The split of ``seed``, which depends on it and the graph alone, and what draws negatives for training.

    The parts' shares are those of :func:`dstee.experiments.data.graphs.part_sizes`.

    Raises:
        UsageError: torch-geometric is missing, or there are too few edges, or too few pairs without one.
    """
    message, supervision, validation, test = _parts(graph, seed)
    negatives = Negatives(graph, message)
    split = LinkSplit(
        message, supervision, validation, test,
        negatives.draw(validation, generator_of(seed, "validation")), negatives.draw(test, generator_of(seed, "test")),
        _features(graph, message, seed),
    )  # fmt: skip
    return split, negatives


def _parts(graph: Graph, seed: int) -> list[Tensor]:
    """Message, supervision, validation and test edges, in random order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, as torch-geometric is imported
        try:
            from torch_geometric.data import Data
            from torch_geometric.transforms import RandomLinkSplit
        except ImportError as error:
            raise UsageError(needs("link prediction", "torch-geometric", "graphs")) from error
    sizes = {part: graph.size(part) for part in ("validation", "test")}
    split = RandomLinkSplit(
        num_val=sizes["validation"], num_test=sizes["test"], is_undirected=True, disjoint_train_ratio=SUPERVISED,
        add_negative_train_samples=False, neg_sampling_ratio=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # it takes its numbers from the global generator
        torch.set_rng_state(generator_of(seed, "split").get_state())
        train, validation, test = split(Data(edge_index=graph.edges.T, num_nodes=graph.nodes))
    message = train.edge_index[:, : train.edge_index.shape[1] // 2]  # then come the reverse ones
    labelled = [part.edge_label_index for part in (train, validation, test)]
    return [part.T.contiguous() for part in (message, *labelled)]


def _features(graph: Graph, message: Tensor, seed: int) -> Tensor:
    random = torch.randn(graph.nodes, RANDOM_FEATURES, generator=generator_of(seed, "features"))
    degrees = torch.bincount(message.flatten(), minlength=graph.nodes)
    return torch.cat([random, degrees.float().log1p()[:, None]], 1)
