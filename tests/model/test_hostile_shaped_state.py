"""Everything that is refused as a state of format 2: one ValueError in words, and nothing has changed."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.sparse_states import digest, edit, seal_tensors, trained, with_head
from torch import Tensor

import dstee


def freed(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(t.untyped_storage().nbytes() // 2)
    return t


def nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(12)] * 9)


class Wrapped(Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError


def wrapped(t: Tensor) -> Tensor:
    return Tensor._make_wrapper_subclass(Wrapped, t.shape, dtype=t.dtype)


LAYER = "layers/0.weight"
MASK, COUNTS, KEPT = f"{LAYER}/mask", f"{LAYER}/counts", f"{LAYER}/kept"
OF_STATES = [
    (edit("head", "-"), "format version None and no head"),
    (edit("head", None), "head must be a JSON text, got NoneType"),
    (edit("head", b"{}"), "head must be a JSON text, got bytes"),
    (edit("head", torch.ones(3)), "head must be a JSON text, got Tensor"),
    (edit("head", ""), "head is not JSON: "),
    (edit("head", "[1]"), "head must hold a JSON object, got list"),
    (edit("head", "{}"), "head has format version None, this dstee reads 2"),
    (edit("head", "[" * 10**6), "head is not JSON: nested too deeply"),
    (edit("head", '{"a":' * 100 + "1" + "}" * 100), "head is not JSON: nested too deeply"),
    (edit("head", '{"t": ' + "9" * 10**6 + "}"), "head is not JSON: the number 99999999999999999999... has more than 64"),
    (edit("head", '{"t": 1, "t": 2}'), "head is not JSON: duplicate key"),
    (edit("head", "\ud800"), "head is not JSON: "),
    (edit("head", lambda text: text[:-1]), "head is not JSON: "),
    (edit("head", lambda text: text.replace('"t": 3', '"t": 4')), "digest does not match: the head of the state was damaged"),
    (edit("extra", 1), "unknown entry 'extra'"),
    (edit("layers", "-"), "layers is no dict"),
    (edit("layers", [1]), "layers is no dict"),
    (edit("layers", {}), "0.weight: its tensors are missing"),
    (edit("layers/7", {}), "'7': tensors that the head does not tell of"),
    (lambda state: state["layers"].update({7: {}}), "7: tensors that the head does not tell of"),
    (edit(LAYER, 5), "0.weight: expected a dict, got int"),
    (edit(LAYER, None), "0.weight: its tensors are missing"),
    (edit(LAYER + "/code", "import os"), "unknown entry 'code'"),
    (edit(MASK, "-"), "the mask is missing"),
    (edit(MASK, [0] * 108), "mask must be a dense tensor, got list"),
    (edit(MASK, lambda t: t.view(12, 9)), "mask is torch.uint8 [12, 9]"),
    (edit(MASK, lambda t: t.view(-1)), "mask is torch.uint8 [108]"),
    (edit(MASK, lambda t: t.t().contiguous().t()), "stride (1, 9), expected torch.uint8 [9, 12], contiguous"),
    (edit(MASK, lambda t: t.bool()), "mask is torch.bool"),
    (edit(MASK, lambda t: t.float()), "mask is torch.float32"),
    (edit(MASK, lambda t: t.to_sparse()), "mask must be a dense tensor"),
    (edit(MASK, lambda t: t.to("meta")), "mask must be a dense tensor"),
    (edit(MASK, freed), "mask must be a dense tensor"),
    (edit(MASK, wrapped), "mask must be a dense tensor, got Wrapped"),
    (edit(MASK, torch.zeros(1, dtype=torch.uint8).expand(9, 12)), "stride (0, 0)"),
    (edit(MASK, torch.zeros(1, dtype=torch.uint8).expand(10**12)), "[1000000000000] stride (0,)"),
    (edit(COUNTS, "-"), "counts is missing, but has a fingerprint"),
    (edit(COUNTS, lambda t: t.int()), "counts is torch.int32"),
    (edit(COUNTS, lambda t: t[:8]), "counts is torch.int16 [8, 12]"),
    (edit(KEPT, "-"), "kept.momentum is missing, but has a fingerprint"),
    (edit(KEPT, [1]), "kept is no dict, got list"),
    (edit(KEPT + "/other", torch.zeros(9, 12)), "kept tensor 'other' is none of SNFS's, ['momentum']"),
    (edit(KEPT + "/momentum", lambda t: t.double()), "kept.momentum is torch.float64"),
    (edit(KEPT + "/momentum", lambda t: torch._neg_view(t)), "kept.momentum is torch.float32"),
    (edit(KEPT + "/momentum", None), "kept.momentum must be a dense tensor, got NoneType"),
    (edit(KEPT + "/momentum", nested()), "kept.momentum must be a dense tensor"),
]  # fmt: skip


def refused(change, text: str) -> None:
    _, sparse, _ = trained(method=dstee.SNFS(), track_exploration=True)
    state, before = sparse.state_dict(), digest(sparse)
    change(state)
    with pytest.raises(ValueError) as caught:
        sparse.load_state_dict(state)
    assert text in str(caught.value) and "sparse state" in str(caught.value)
    assert digest(sparse) == before and not sparse._unchecked


@pytest.mark.parametrize("change, text", OF_STATES, ids=[text[:40] for _, text in OF_STATES])
def test_a_hostile_state_is_one_value_error_and_changes_nothing(change, text) -> None:
    refused(change, text)


OF_HEADS = [
    ("format_version", True, "head has format version True"),
    ("format_version", 3, "head has format version 3, this dstee reads 2"),
    ("t", 2.0, "t must be a step number, got 2.0"),
    ("t", float("nan"), "t must be a step number, got nan"),
    ("t", float("inf"), "t must be a step number, got inf"),
    ("t", -1, "t must be a step number"),
    ("t", True, "t must be a step number"),
    ("t", 2**63, "t must be a step number"),
    ("t", "-", "t is missing in the head"),
    ("round", 40_000, "round must be in 0..32766"),
    ("round", [[[1]]], "round must be in"),
    ("round", 4, "round is 4, more than the 3 steps taken"),
    ("seed", "0", "seed must be an int"),
    ("seed", 1.5, "seed must be an int"),
    ("extra", 1, "unknown entry 'extra' in the head"),
    ("digest", {}, "digest does not match"),
    ("method", None, "method is no dict of plain values"),
    ("method/method", "os.system", "unknown method 'os.system'"),
    ("method/order", [[1]], "method is no dict of plain values"),
    ("schedule/every", 0, "every must be"),
    ("schedule/fraction", float("nan"), "fraction must be in"),
    ("numbers", {"x": 1.0}, "numbers are {'x': 1.0}, SNFS keeps []"),
    ("numbers", 5, "numbers are 5"),
    ("layers", [], "layers is no object in the head"),
    ("layers", {}, "0.weight: in the model, not in the state"),
    ("layers/7", {}, "'7': in the state, no sparse layer"),
    (LAYER, 5, "0.weight: expected an object in the head, got int"),
    (LAYER + "/shape", [2**60, 12], "shape [1152921504606846976, 12], the model has [9, 12]"),
    (LAYER + "/shape", [9, [12]], "shape"),
    (LAYER + "/shape", [9.0, 12], "shape"),
    (LAYER + "/nnz", True, "nnz must be in 0..108"),
    (LAYER + "/nnz", -1, "nnz must be in 0..108"),
    (LAYER + "/budget", -1, "budget must be in 0..108"),
    (LAYER + "/budget", "-", "budget must be in 0..108, got None"),
    (LAYER + "/code", "import os", "unknown entry 'code' in the head"),
    (LAYER + "/updated", 1, "updated must be true or false, got 1"),
    (LAYER + "/updated", False, "mask differs from the one before the last update, but there was none"),
    (LAYER + "/fingerprints", [1], "fingerprints must be ints of 64 bits"),
    (LAYER + "/fingerprints/mask", "-", "fingerprints must be ints of 64 bits"),
    (LAYER + "/fingerprints/mask", 1.0, "fingerprints must be ints of 64 bits"),
    (LAYER + "/fingerprints/mask", 2**63, "fingerprints must be ints of 64 bits"),
    (LAYER + "/fingerprints/mask", 7, "mask is damaged: its fingerprint does not match"),
    (LAYER + "/fingerprints/counts", "-", "counts have no fingerprint"),
    (LAYER + "/fingerprints/more", 1, "more is missing, but has a fingerprint"),
    (LAYER + "/fingerprints/kept.momentum", "-", "kept.momentum is not 0 and has no fingerprint"),
]


@pytest.mark.parametrize("path, value, text", OF_HEADS, ids=[f"{path} {str(value)[:20]}" for path, value, _ in OF_HEADS])
def test_a_hostile_head_with_its_own_digest_is_one_value_error(path, value, text) -> None:
    refused(lambda state: with_head(state, edit(path, value), seal=path != "digest"), text)


@pytest.mark.parametrize(
    "path, value",
    [("t", 4), ("round", 3), ("seed", 7), ("method/beta", 0.5), ("schedule/fraction", 0.25), (LAYER + "/budget", 5)],
)
def test_an_edited_head_shows(path: str, value: float) -> None:
    def change(head):
        head["t"] = 4  # not as it was saved: only the digest can tell
        edit(path, value)(head)

    refused(
        lambda state: with_head(state, change, seal=False), "digest does not match: the head of the state was damaged or edited"
    )


@pytest.mark.parametrize("key", ["mask", "counts", "kept"])
def test_every_flipped_bit_shows(key: str) -> None:
    _, sparse, _ = trained(method=dstee.SNFS(), track_exploration=True)
    state = sparse.state_dict()
    tensor = state["layers"]["3.weight"][key]
    raw = (tensor["momentum"] if key == "kept" else tensor).view(-1).view(torch.uint8)
    for bit in range(0, 8 * raw.numel(), 5):
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=rf"3.weight: {key}\S* is damaged: its fingerprint does not match"):
            sparse.load_state_dict(state)
        raw[bit // 8] ^= 1 << bit % 8
    sparse.load_state_dict(state)


@pytest.mark.parametrize(
    "key, edited, text",
    [
        ("mask", lambda t: t ^ 1, r"mask has \d+ active weights, nnz says"),
        ("mask", lambda t: t | 4, "mask holds 7, expected 0 to 3"),
        ("mask", lambda t: t | 128, "mask holds 131, expected 0 to 3"),
        ("counts", lambda t: t - 1, r"counts lie in -1\.\."),
        ("counts", lambda t: t + 9, "counts lie in .*expected 0..3"),
    ],
)
def test_contents_are_checked_even_under_matching_fingerprints(key, edited, text) -> None:
    _, sparse, _ = trained()
    state = sparse.state_dict()
    layer = state["layers"]["0.weight"]
    layer[key] = edited(layer[key])
    with pytest.raises(ValueError, match=text):
        sparse.load_state_dict(seal_tensors(state))
