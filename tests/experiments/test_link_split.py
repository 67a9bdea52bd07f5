"""How a graph is split for link prediction: no edge in two parts, none that is held out in what the network sees."""

from collections import Counter

import pytest
import torch
from support.tiny_graph import needs_geometric, tiny_graph

from dstee._console import UsageError
from dstee.experiments.data.graphs import Graph, part_sizes
from dstee.experiments.tasks.link_split import Negatives, generator_of, split_links

PARTS = ("message", "supervision", "validation", "test")


def as_set(pairs):
    return {tuple(sorted(pair)) for pair in pairs.tolist()}


@pytest.fixture(scope="module")
def graph():
    return tiny_graph()


@pytest.fixture(scope="module")
def split(graph):
    needs_geometric()
    return split_links(graph, 0)[0]


def test_sizes_by_hand(graph, split):
    """400 edges: 20 to choose by, 40 to test; of the 340 others 136 are predicted and 204 pass messages."""
    assert [len(getattr(split, part)) for part in PARTS] == [204, 136, 20, 40]
    assert [graph.size(part) for part in ("train", "validation", "test")] == [340, 20, 40]
    assert part_sizes(100_762) == {"train": 85_648, "validation": 5_038, "test": 10_076}
    assert part_sizes(19)["validation"] == 0
    assert [len(split.validation_negatives), len(split.test_negatives)] == [20, 40]


def test_no_edge_is_in_two_parts(graph, split):
    parts = [as_set(getattr(split, part)) for part in PARTS]
    assert [len(part) for part in parts] == [204, 136, 20, 40]
    assert set.union(*parts) == as_set(graph.edges) and sum(map(len, parts)) == 400


def test_what_the_network_sees_of_the_graph_are_the_message_edges(graph, split):
    degrees = Counter(node for pair in split.message.tolist() for node in pair)
    expected = torch.tensor([degrees[node] for node in range(graph.nodes)]).double().add(1).log()
    assert split.features.shape == (graph.nodes, 32)
    torch.testing.assert_close(split.features[:, -1].double(), expected, rtol=1e-6, atol=1e-6)
    assert abs(float(split.features[:, :-1].mean())) < 0.06 and abs(float(split.features[:, :-1].std()) - 1) < 0.06


def test_a_split_depends_on_graph_and_seed_alone(graph, split):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again, other = split_links(graph, 0)[0], split_links(graph, 1)[0]
    assert torch.equal(torch.get_rng_state(), before)
    for name in vars(split):
        assert torch.equal(getattr(split, name), getattr(again, name))
        assert not torch.equal(getattr(split, name), getattr(other, name))


def test_negatives_are_no_edges(graph, split):
    negatives = Negatives(graph, split.message)
    edges = as_set(graph.edges)
    drawn = [negatives.draw(split.supervision, generator_of(0, "step", i)) for i in range(50)]
    for pairs in (*drawn, split.validation_negatives, split.test_negatives):
        assert not as_set(pairs) & edges
        assert all(u != v for u, v in pairs.tolist())
        assert pairs.min() >= 0 and pairs.max() < graph.nodes
    assert torch.equal(drawn[3], negatives.draw(split.supervision, generator_of(0, "step", 3)))
    assert not torch.equal(drawn[3], drawn[4])


def test_are_edges_against_a_set(graph, split):
    negatives, edges = Negatives(graph, split.message), as_set(graph.edges)
    pairs = torch.cartesian_prod(torch.arange(graph.nodes), torch.arange(graph.nodes))
    expected = [u == v or (min(u, v), max(u, v)) in edges for u, v in pairs.tolist()]
    assert negatives.are_edges(pairs).tolist() == expected


def test_half_of_the_negatives_are_uniform_and_half_go_by_degree():
    """A path of messages 0-1-2 with node 0 also joined to 3..7 by messages, far from the positives 8-9, so nothing is refused
    but pairs within; node 0 has 6 of 14 ends."""
    message = torch.tensor([[0, 1], [1, 2], *([0, n] for n in range(3, 8))])
    positive = torch.tensor([[8, 9]])
    negatives = Negatives(Graph.of_pairs("toy", torch.cat([message, positive]), 40), message)
    n = 40_000
    drawn = negatives.draw(positive.expand(n, 2), generator_of(0, "step"))
    uniform, by_degree = drawn[: n // 2], drawn[n // 2 :]
    share = torch.bincount(uniform.flatten(), minlength=40) / n
    assert share.min() > 0.021 and share.max() < 0.029  # 1 / 40 each, but for the few pairs that are edges
    kept, other = by_degree.T
    assert set(kept.tolist()) == {8, 9} and 0.47 < float((kept == 8).float().mean()) < 0.53
    ends = torch.bincount(other, minlength=40) / (n / 2)
    assert ends[8:].sum() == 0
    expected = torch.bincount(message.flatten(), minlength=40) / 14
    torch.testing.assert_close(ends, expected.float(), rtol=0, atol=0.015)


def test_an_odd_number_and_one_end_each(graph, split):
    positives = split.supervision[:7]
    drawn = Negatives(graph, split.message).draw(positives, generator_of(3, "step"))
    assert len(drawn) == 7
    assert all(set(pair) & set(kept) for pair, kept in zip(drawn[3:].tolist(), positives[3:].tolist(), strict=True))


def test_a_graph_with_all_edges_has_no_negatives():
    complete = Graph.of_pairs("complete", torch.combinations(torch.arange(10)), 10)
    with pytest.raises(UsageError, match="complete: hardly a pair of its 10 nodes is without an edge"):
        Negatives(complete, complete.edges).draw(complete.edges, generator_of(0, "step"))


def test_streams_of_numbers_are_unrelated():
    first = {
        int(torch.randint(1 << 40, (), generator=generator_of(seed, stream, index)))
        for seed in (0, 1) for stream in ("order", "step") for index in (0, 1, 2)
    }  # fmt: skip
    assert len(first) == 12
