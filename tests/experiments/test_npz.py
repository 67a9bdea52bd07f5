"""Arrays of an npz file against a description with free sizes, other kinds and limits; damage is in test_hostile_data.py."""

import numpy as np
import pytest

from dstee._console import UsageError
from dstee.experiments.data.npz import Array, read_npz

GRAPH = {
    "src": Array(("edges",), low=0, values="nodes", most=100),
    "dst": Array(("edges",), low=0, values="nodes", most=100),
    "directed": Array((), "b"),
    "weights": Array(("edges", 2), "f", low=-1, high=1, values="weights", most=100),
}
GOOD = {
    "src": np.array([0, 1, 5], np.int32),
    "dst": np.array([1, 2, 0], np.int64),
    "directed": np.array(True),
    "weights": np.full((3, 2), 0.5),
    "other": np.array([print], dtype=object),
}


def read(folder, **change):
    arrays = {key: array for key, array in {**GOOD, **change}.items() if array is not None}
    np.savez(folder / "graph.npz", allow_pickle=True, **arrays)
    return read_npz(folder / "graph.npz", GRAPH)


def test_free_sizes_scalars_and_other_kinds_are_read(tmp_path):
    found = read(tmp_path)
    assert found.keys() == GRAPH.keys() and found["directed"].shape == () and bool(found["directed"])
    assert all(np.array_equal(found[key], GOOD[key]) and found[key].dtype == GOOD[key].dtype for key in GRAPH)
    none = {"src": GOOD["src"][:0], "dst": GOOD["dst"][:0], "weights": GOOD["weights"][:0]}
    assert len(read(tmp_path, **none)["src"]) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dst": GOOD["dst"][:2]}, r"array dst is int64 \[2\], expected integers \[edges\] .* with edges = 3"),
        ({"weights": np.zeros((2, 3))}, r"array weights is float64 \[2, 3\], expected floats \[edges, 2\]"),
        ({"weights": np.zeros((4, 2))}, r"weights is float64 \[4, 2\].*with edges = 3"),
        ({"weights": np.zeros(3)}, r"weights is float64 \[3\]"),
        ({"weights": np.full((3, 2), np.nan)}, "weights that are not finite"),
        ({"weights": np.full((3, 2), np.inf)}, "weights that are not finite"),
        ({"weights": np.full((3, 2), 1.5)}, r"has weights outside -1\.\.1"),
        ({"weights": np.zeros((3, 2), np.complex64)}, "weights is complex64"),
        ({"weights": np.zeros((3, 2), np.longdouble)}, "weights is float128|would take"),
        ({"src": np.arange(101)}, r"src is int64 \[101\], expected integers \[edges\] of at most 100"),
        ({"src": np.arange(9000)}, "array src would take"),
        ({"src": np.array([0, -1, 2])}, "has nodes below 0"),
        ({"src": np.array([0, 1, 2], float)}, "src is float64"),
        ({"directed": np.array([True])}, r"directed is bool \[1\], expected bool \[\]"),
        ({"directed": np.array(1)}, "directed is int64"),
        ({"directed": None}, "array directed is missing"),
    ],
)
def test_what_is_not_as_described_is_named(tmp_path, change, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        read(tmp_path, **change)
    assert str(caught.value).startswith(f"{tmp_path / 'graph.npz'} is not a usable graph.npz: ")


def test_a_free_size_needs_a_limit(tmp_path):
    np.savez(tmp_path / "graph.npz", **{"a": np.zeros(3, int)})
    with pytest.raises(UsageError, match="needs `most`"):
        read_npz(tmp_path / "graph.npz", {"a": Array(("n",))})
