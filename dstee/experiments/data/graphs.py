"""Graphs of one file each, for link prediction: ``wiki_vote.npz``, ``ia_email_eu.npz``, ``email_enron.npz``."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dstee._console import UsageError
from dstee.experiments.data.files import data_file
from dstee.experiments.data.npz import Array, read_npz

__all__ = ["Graph", "load_graph", "part_sizes"]

_MAX_EDGES = 1 << 25
"""Edges of a file at most: 128 MiB an array, four times those of the paper's larger graph."""
_MAX_NODES = 1 << 25
_SHARES = {"validation": 0.05, "test": 0.10}


def part_sizes(edges: int) -> dict[str, int]:
    """How many of so many edges are of the parts "train", "validation" and "test": 85, 5 and 10 %, the last two
    rounded down."""
    held_out = {part: int(share * edges) for part, share in _SHARES.items()}
    return {"train": edges - sum(held_out.values()), **held_out}


@dataclass(frozen=True)
class Graph:
    """An undirected graph without loops or double edges.

    Attributes:
        name: the key of the data set. note: what a report must say of it ("" for nothing).
        edges: int64 [edges, 2], the lower node first, sorted.
        nodes: their number; a node need not have an edge.
    """

    name: str
    edges: Tensor
    nodes: int
    note: str = ""

    @staticmethod
    def of_pairs(name: str, pairs: Tensor, nodes: int, note: str = "") -> Graph:
        """Of int64 [n, 2] pairs of nodes in 0..nodes-1: directions, loops and repetitions are left out."""
        low, high = pairs.min(1).values, pairs.max(1).values
        codes = torch.unique((low * nodes + high)[low != high])  # sorted
        return Graph(name, torch.stack([codes // max(nodes, 1), codes % max(nodes, 1)], 1), nodes, note)

    def size(self, part: Literal["train", "validation", "test"]) -> int:
        """Edges of a part, the same for every seed."""
        return part_sizes(len(self.edges))[part]

    @functools.cached_property
    def digest(self) -> str:
        """blake2b (16 bytes, hex) of nodes and edges."""
        hasher = hashlib.blake2b(str(self.nodes).encode(), digest_size=16)
        hasher.update(self.edges.numpy().data)
        return hasher.hexdigest()


def load_graph(name: str, note: str, data_dir: str | None) -> Graph:
    """``<name>.npz`` of ``data_dir`` or ``$DSTEE_DATA``: integers src and dst [edges], num_nodes and the bool directed.

    A directed graph is taken as undirected, an edge and its reverse as one: the decoder gets the same for both directions
    (z_u * z_v and abs(z_u - z_v)), and one direction in the test set would be known from the other in the training set.

    Raises:
        UsageError: the file is missing, damaged or no graph.
    """
    path = data_file(name, f"{name}.npz", data_dir)
    ends = Array(("edges",), low=0, values="nodes", most=_MAX_EDGES)
    numbers = Array((), low=2, high=_MAX_NODES, values="numbers of nodes")
    found = read_npz(path, {"num_nodes": numbers, "directed": Array((), kinds="b"), "src": ends, "dst": ends})
    nodes = int(found["num_nodes"])
    for key in ("src", "dst"):
        if found[key].size and int(found[key].max()) >= nodes:
            raise UsageError(
                f"{path} is not a usable {path.name}: array {key} has nodes outside 0..{nodes - 1}, num_nodes is {nodes}"
            )
    pairs = torch.from_numpy(np.stack([found["src"], found["dst"]], 1).astype(np.int64))
    graph = Graph.of_pairs(name, pairs, nodes, note)
    if 0 in part_sizes(len(graph.edges)).values():
        raise UsageError(f"{path} has {len(graph.edges)} edges: too few to hold out 5 % and 10 % of them")
    return graph
