"""Files of graphs: what they mean, and the hostile ones, refused in one line that names the file."""

import numpy as np
import pytest
import torch
from support.tiny_graph import tiny_graph, write_graph

from dstee._console import UsageError
from dstee.experiments import data
from dstee.experiments.data.graphs import Graph


@pytest.fixture(scope="module")
def graph():
    return tiny_graph()


def test_a_graph_is_read_as_it_was_written(graph, tmp_path):
    write_graph(tmp_path / "wiki_vote.npz", graph)
    found = data.load("wiki_vote", str(tmp_path))
    assert torch.equal(found.edges, graph.edges) and found.nodes == 80 and found.digest == graph.digest
    assert "wiki-talk" in found.note


def test_directions_loops_and_repetitions_are_left_out():
    pairs = torch.tensor([[3, 1], [1, 3], [2, 2], [0, 4], [1, 3], [4, 3]])
    found = Graph.of_pairs("toy", pairs, 6)
    assert found.edges.tolist() == [[0, 4], [1, 3], [3, 4]]
    assert found.digest == Graph.of_pairs("toy", pairs.flip(0), 6).digest
    assert len({found.digest, Graph.of_pairs("toy", pairs, 7).digest, Graph.of_pairs("toy", pairs[:4], 6).digest}) == 3


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"num_nodes": np.int64(79)}, "array src has nodes outside 0..78, num_nodes is 79|array dst has nodes outside 0..78"),
        ({"num_nodes": np.int64(-1)}, "array num_nodes has numbers of nodes outside"),
        ({"num_nodes": np.int64(1 << 40)}, "array num_nodes has numbers of nodes outside"),
        ({"num_nodes": np.float64(80)}, "array num_nodes is float64"),
        ({"num_nodes": np.array([80])}, r"array num_nodes is int64 \[1\]"),
        ({"src": np.full(400, -1, np.int32)}, "array src has nodes below 0"),
        ({"src": np.full(400, 80, np.int32)}, "array src has nodes outside 0..79"),
        ({"dst": np.full(400, (1 << 63) + 5, np.uint64)}, "array dst has nodes outside 0..79"),
        ({"dst": np.zeros(399, np.int32)}, "array dst is int32"),
        ({"dst": np.zeros((400, 1), np.int32)}, "array dst is int32"),
        ({"src": np.zeros(400, np.float32)}, "array src is float32"),
        ({"src": None}, "array src is missing"),
        ({"directed": None}, "array directed is missing"),
        ({"directed": np.int64(0)}, "array directed is int64"),
        ({"src": np.array([{}] * 400, dtype=object)}, "array src"),
        ({"src": np.zeros(400, np.int32), "dst": np.ones(400, np.int32)}, "has 1 edges: too few to hold out"),
        ({"src": np.zeros(0, np.int32), "dst": np.zeros(0, np.int32)}, "has 0 edges: too few to hold out"),
    ],
)
def test_what_is_no_graph_is_refused(graph, tmp_path, changed, reason):
    path = tmp_path / "ia_email_eu.npz"
    write_graph(path, graph, **changed)
    with pytest.raises(UsageError, match=reason) as caught:
        data.load("ia_email_eu", str(tmp_path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path, monkeypatch):
    monkeypatch.delenv("DSTEE_DATA", raising=False)
    with pytest.raises(UsageError, match=r"--data email_enron needs the folder of email_enron\.npz: pass --data-dir"):
        data.load("email_enron", None)
    with pytest.raises(UsageError, match=r"no file .*email_enron\.npz"):
        data.load("email_enron", str(tmp_path))
    (tmp_path / "email_enron.npz").write_bytes(b"PK" * 40)
    with pytest.raises(UsageError, match=r"is not a usable email_enron\.npz"):
        data.load("email_enron", str(tmp_path))
