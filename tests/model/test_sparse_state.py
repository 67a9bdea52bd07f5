"""SparseModel.state_dict and load_state_dict: bit for bit there and back in both formats; what is refused in format 1."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from support.small_models import convnet, differing, mlp, set_gradients, snapshot
from support.sparse_states import edit, through_a_file, trained

import dstee
from dstee import _state_dict


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"method": dstee.RigL(order="after", reset_regrown=True)},
        {"method": dstee.SET(), "track_exploration": True, "seed": -7},
        {"schedule": dstee.UpdateSchedule(every=1, stop=50, drop=dstee.CosineDrop(0.3, floor=0.005))},
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_resumes_with_the_same_bits(kwargs, full):
    model, sparse, optimizer = trained(**kwargs)
    saved = through_a_file({"m": model.state_dict(), "s": sparse.state_dict(full), "o": optimizer.state_dict()})
    model2, sparse2, optimizer2 = trained(mlp(5), steps=1, track_exploration=kwargs.get("track_exploration", False))
    model2.load_state_dict(saved["m"])
    sparse2.load_state_dict(saved["s"])
    optimizer2.load_state_dict(saved["o"])
    assert (sparse2.method, sparse2.schedule, sparse2.seed) == (sparse.method, sparse.schedule, sparse.seed)
    assert not differing(snapshot(sparse, optimizer), snapshot(sparse2, optimizer2))
    for t in range(3, 6):
        for m, s, o in ((model, sparse, optimizer), (model2, sparse2, optimizer2)):
            set_gradients(m, t)
            assert s.step(o)
        assert not differing(snapshot(sparse, optimizer), snapshot(sparse2, optimizer2))


def test_state_is_plain_and_a_copy():
    model, sparse, optimizer = trained()
    state = sparse.state_dict(full=True)
    before = copy.deepcopy(state)
    set_gradients(model, 9)
    sparse.step(optimizer)
    for name, layer in state["layers"].items():
        assert {key: type(value) for key, value in layer.items()} == {
            "shape": list, "nnz": int, "mask": torch.Tensor, "mask_digest": str, "counts": torch.Tensor,
            "counts_digest": str, "previous": torch.Tensor, "previous_digest": str,
        }  # fmt: skip
        for key in ("mask", "counts", "previous"):
            assert torch.equal(layer[key], before["layers"][name][key])  # training goes on without it
    plain = {key: value for key, value in state.items() if key != "layers"}
    assert json.loads(json.dumps(plain)) == plain
    loaded = dstee.sparsify(mlp(), 0.6, seed=1)
    loaded.load_state_dict(state)
    state["layers"]["0.weight"]["mask"].zero_()
    assert int(loaded.mask("0.weight").sum()) == loaded.layers["0.weight"].nnz


def test_order_in_the_state_is_row_major():
    """Saved from one memory format, loaded into another."""
    model, sparse, optimizer = trained(convnet())
    model.to(memory_format=torch.channels_last)
    set_gradients(model, 3)
    sparse.step(optimizer)
    state = sparse.state_dict(full=True)
    plain = dstee.sparsify(convnet(), 0.6, seed=1)
    plain.load_state_dict(state)
    for name in sparse.layers:
        assert torch.equal(plain.mask(name), sparse.mask(name)) and torch.equal(plain.counter(name), sparse.counter(name))
        assert torch.equal(plain.last_grown(name), sparse.last_grown(name))
        mask = dstee.ops.unpack_mask(state["layers"][name]["mask"], sparse.layers[name].shape)
        assert torch.equal(mask, sparse.mask(name))
    assert plain.state_dict(full=True)["digest"] == state["digest"]


def test_all_differences_come_in_one_error_and_nothing_changes():
    _, sparse, _ = trained()
    _, other, _ = trained(convnet(), method=dstee.RigL(order="after"))
    state = other.state_dict(full=True)
    state["layers"]["3.weight"]["mask_digest"] = "0"
    state["method"] = {"method": "rigl", "c": 1.0}
    state["t"] = 1
    before = sparse.state_dict(full=True)
    with pytest.raises(ValueError) as caught:
        sparse.load_state_dict(state)
    text = str(caught.value)
    for part in (
        "cannot load the sparse state, nothing was changed",
        "0.weight: shape [8, 3, 3, 3], the model has [9, 12]",
        "3.weight: shape [4, 8, 1, 1], the model has [5, 9]",
        "'5.weight': in the state, no sparse layer of the model",
        "method: the method rigl has no setting",
        "round is 3, more than the 1 steps taken",
    ):
        assert part in text
    assert sparse.state_dict(full=True)["digest"] == before["digest"]


def test_budgets_and_counters_must_fit_unless_told_otherwise():
    _, sparse, _ = trained()
    state = dstee.sparsify(mlp(), 0.8).state_dict(full=True)
    with pytest.raises(ValueError, match=r"0.weight: \d+ active weights, the model has \d+ \(strict=False"):
        sparse.load_state_dict(state)
    sparse.load_state_dict(state, strict=False)
    assert sparse.nnz == round(0.2 * 153) and sparse.round == 0
    without = dstee.sparsify(mlp(), 0.8, method=dstee.RigL()).state_dict(full=True)
    without["method"] = dstee.DSTEE().to_dict()
    with pytest.raises(ValueError, match=r"0.weight: counts are missing, DST-EE needs them"):
        sparse.load_state_dict(without, strict=False)
    assert sparse.layers["0.weight"].counts is not None


def test_not_strict_takes_what_fits_and_lets_the_rest_start_anew():
    _, sparse, _ = trained()
    state = sparse.state_dict(full=True)
    model = mlp(2)
    other = dstee.sparsify(model, {"3.weight": 0.5}, exclude="0", method=dstee.RigL())
    with pytest.raises(ValueError, match=r"'0.weight': in the state, no sparse layer"):
        other.load_state_dict(state)
    other.load_state_dict(state, strict=False)
    assert torch.equal(other.mask("3.weight"), sparse.mask("3.weight")) and other.round == 3
    unrelated = dstee.sparsify(convnet(), 0.5)
    with pytest.raises(ValueError, match=r"0.weight: shape"):
        unrelated.load_state_dict(state, strict=False)
    target = dstee.sparsify(mlp(3), 0.6, seed=3)
    masks = target.masks()
    del state["layers"]["0.weight"]
    state["digest"] = _state_dict._head_digest(state)
    target.load_state_dict(state, strict=False)
    assert torch.equal(target.mask("0.weight"), masks["0.weight"])
    assert torch.equal(target.counter("0.weight"), masks["0.weight"].int())


def test_weights_of_another_checkpoint_are_refused_at_the_next_step():
    _, sparse, _ = trained()
    state = sparse.state_dict(full=True)
    stranger, other, stepper = trained(mlp(1), seed=1)
    other.load_state_dict(state)  # the masks alone: the weights are from elsewhere
    set_gradients(stranger, 0)
    before = snapshot(other, stepper)
    for step in (lambda: other.step(stepper), stepper.step):
        with pytest.raises(ValueError, match=r"weights outside the masks are not 0 in 0.weight, 3.weight.*apply_masks\(\)"):
            step()
    assert not differing(before, snapshot(other, stepper))
    other.apply_masks()
    assert other.step(stepper)


def flip(t):
    t = t.clone()
    t.view(torch.uint8)[0] ^= 4
    return t


def behind_the_last(bits):
    """An active bit taken out and one behind the 108th weight put in: their number stays."""
    bits = bits.clone()
    byte = int(bits.nonzero()[0])
    bits[byte] &= bits[byte] - 1
    bits[-1] |= 0x80
    return bits


LAYER = "layers/0.weight"
HOSTILE = [
    (edit("format_version", 2), "format version 2 and no head, this dstee reads 1, and 2 with a head"),
    (edit("format_version", True), "format version True"),
    (edit("format_version", torch.ones(3)), "format version"),
    (edit("t", 2.0), "t must be a step number, got 2.0"),
    (edit("t", -1), "t must be a step number"),
    (edit("t", 7), "digest does not match"),
    (edit("round", 40_000), r"round must be in 0\.\.32766"),
    (edit("round", torch.ones(2)), "round must be in"),
    (edit("round", "-"), "round is missing"),
    (edit("seed", "0"), "seed must be an int"),
    (edit("extra", 1), "unknown entry 'extra'"),
    (edit("digest", torch.ones(2)), "digest does not match"),
    (edit("method", None), "method is no dict of plain values"),
    (edit("method/method", "os.system"), "unknown method 'os.system'"),
    (edit("method/c", float("inf")), "c must be a finite number"),
    (edit("method/c", 10**400), "method: "),
    (edit("method/c", True), "c of the method must be a number, got True"),
    (edit("method/c", "1"), "c of the method must be a number, got '1'"),
    (edit("method/c", float("nan")), "c must be a finite number"),
    (edit("method/eps", False), "eps of the method must be a number, got False"),
    (edit("method/regrow", 1), "regrow must be True or False"),
    (edit("schedule/every", True), "every must be"),
    (edit("schedule/fraction", True), "fraction of the schedule must be a number, got True"),
    (edit("schedule/fraction", float("nan")), "fraction must be in"),
    (edit("seed", True), "seed must be an int"),
    (edit("seed", 2**64), "seed must be an int"),
    (edit("t", True), "t must be a step number"),
    (edit("t", 2**63), "t must be a step number"),
    (edit("round", True), "round must be in"),
    (edit(LAYER + "/nnz", True), "nnz must be in"),
    (edit(LAYER + "/shape", [2**70, 12]), "shape"),
    (edit("method/order", torch.ones(1)), "method is no dict of plain values"),
    (edit("schedule/every", 0), "every must be"),
    (edit("schedule/drop", "sudden"), "unknown drop 'sudden'"),
    (edit("layers", [1]), "layers is no dict"),
    (edit("layers", {}), "0.weight: in the model, not in the state"),
    (edit("layers/7", {"nnz": {1, 2}}), "'7': in the state, no sparse layer"),
    (edit(LAYER, 5), "0.weight: expected a dict, got int"),
    (edit(LAYER + "/shape", [12, 9]), r"shape \[12, 9\], the model has \[9, 12\]"),
    (edit(LAYER + "/shape", [torch.ones(3), 12]), "shape"),
    (edit(LAYER + "/shape", [9, True]), "shape"),
    (edit(LAYER + "/nnz", -1), r"nnz must be in 0\.\.108"),
    (edit(LAYER + "/nnz", lambda n: n + 1), "active weights, the model has"),
    (edit(LAYER + "/code", "import os"), "unknown entry 'code'"),
    (edit(LAYER + "/mask", "-"), "the mask is missing"),
    (edit(LAYER + "/mask", [0] * 14), "mask must be a dense tensor, got list"),
    (edit(LAYER + "/mask", flip), "mask is damaged"),
    (edit(LAYER + "/counts", flip), "counts is damaged"),
    (edit(LAYER + "/previous", flip), "previous is damaged"),
    (edit(LAYER + "/mask_digest", "-"), "mask is damaged"),
    (edit(LAYER + "/mask_digest", torch.ones(2)), "mask is damaged"),
    (edit(LAYER + "/mask", lambda t: t[:-1]), r"mask is torch.uint8 \[13\]"),
    (edit(LAYER + "/mask", lambda t: t.float()), r"mask is torch.float32 \[14\]"),
    (edit(LAYER + "/mask", lambda t: t.to_sparse()), "mask must be a dense tensor"),
    (edit(LAYER + "/mask", lambda t: t.to("meta")), "mask must be a dense tensor"),
    (edit(LAYER + "/mask", torch.zeros(1, dtype=torch.uint8).expand(14)), r"stride \(0,\)"),
    (edit(LAYER + "/mask", torch.zeros(1, dtype=torch.uint8).expand(10**12)), r"\[1000000000000\] stride \(0,\)"),
    (edit(LAYER + "/counts", torch.zeros(1, dtype=torch.int16).expand(9, 12)), r"counts is torch.int16 \[9, 12\]"),
    (edit(LAYER + "/counts", lambda t: t.int()), "counts is torch.int32"),
    (edit(LAYER + "/counts", "-"), "counts are missing"),
]


@pytest.mark.parametrize("change, text", HOSTILE, ids=[text[:30] for _, text in HOSTILE])
def test_a_hostile_state_is_one_value_error_and_changes_nothing(change, text):
    _, sparse, _ = trained()
    state, before = sparse.state_dict(full=True), sparse.state_dict(full=True)
    change(state)
    with pytest.raises(ValueError, match=text):
        sparse.load_state_dict(state)
    assert sparse.state_dict(full=True)["digest"] == before["digest"] and not sparse._unchecked


@pytest.mark.parametrize(
    "key, edited, text",
    [
        ("mask", lambda t: t ^ 1, r"mask has \d+ active weights, nnz says"),
        ("mask", lambda t: torch.cat([t[:-1] & 0, t[-1:] * 0 + 240]), "mask has bits beyond its 108 weights|active weights"),
        ("mask", behind_the_last, "mask has bits beyond its 108 weights"),
        ("previous", behind_the_last, "previous has bits beyond its 108 weights"),
        ("counts", lambda t: t - 1, r"counts lie in -1\.\."),
        ("counts", lambda t: t + 9, "counts lie in .*expected 0..3"),
    ],
)
def test_contents_are_checked_even_under_a_matching_digest(key, edited, text):
    _, sparse, _ = trained()
    state = sparse.state_dict(full=True)
    layer = state["layers"]["0.weight"]
    layer[key] = edited(layer[key])
    layer[f"{key}_digest"] = _state_dict.digest(layer[key])
    state["digest"] = _state_dict._head_digest(state)
    with pytest.raises(ValueError, match=text):
        sparse.load_state_dict(state)


@pytest.mark.parametrize("state", [None, [], "state", 3, torch.zeros(3), {}])
def test_what_is_no_state_at_all(state):
    with pytest.raises(ValueError, match="sparse state"):
        dstee.sparsify(mlp(), 0.6).load_state_dict(state)
