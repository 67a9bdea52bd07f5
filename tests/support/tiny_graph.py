"""A small graph for link prediction, as data and as a file."""

import importlib
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from dstee.experiments.data.graphs import Graph

NODES, EDGES = 80, 400


def needs_geometric():
    if find_spec("torch_geometric") is None:
        pytest.skip("needs torch-geometric: pip install 'dstee[graphs]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which it uses
        importlib.import_module("torch_geometric.nn")


def tiny_graph():
    """400 edges among 80 nodes, of which the first ones have most."""
    rng = np.random.default_rng(0)
    edges = set()
    while len(edges) < EDGES:
        u, v = sorted((rng.random(2) ** 2 * NODES).astype(int).tolist())
        if u != v:
            edges.add((u, v))
    return Graph.of_pairs("tiny", torch.tensor(sorted(edges)), NODES)


def write_graph(path, graph, **other):
    """As an npz file; ``other`` arrays replace those of the graph."""
    src, dst = graph.edges.numpy().astype(np.int32).T
    arrays = {"src": src, "dst": dst, "num_nodes": np.int64(graph.nodes), "directed": np.bool_(False), **other}
    np.savez_compressed(path, **{key: array for key, array in arrays.items() if array is not None})
