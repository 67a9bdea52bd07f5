"""dstee.sparsify: which layers, how many weights, which ones, and what it refuses."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from support.small_models import assert_invariant, convnet, mlp
from torch import nn

import dstee
from dstee.sparsity_distribution import random_mask


class Block(nn.Module):
    """One of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(10, 8)
        self.attn = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
        self.norm = nn.LayerNorm([4, 8])
        self.conv1, self.conv3 = nn.Conv1d(8, 8, 3), nn.Conv3d(2, 4, 2)
        self.up = nn.ConvTranspose2d(4, 6, 3)
        self.bi = nn.Bilinear(3, 4, 5)
        self.rnn = nn.LSTM(4, 3)
        self.head = nn.ModuleDict({"proj": nn.Linear(8, 8), "out": nn.Linear(8, 10)})


DEFAULT = [
    "attn.in_proj_weight", "attn.out_proj.weight", "cross.q_proj_weight", "cross.k_proj_weight", "cross.v_proj_weight",
    "cross.out_proj.weight", "conv1.weight", "conv3.weight", "up.weight", "head.proj.weight", "head.out.weight",
]  # fmt: skip


def names(model: nn.Module, **kwargs) -> list[str]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+% of the matrix weights stay dense")
        return list(dstee.sparsify(model, 0.5, **kwargs).layers)


def test_default_layers_are_matrices_of_linear_conv_and_attention():
    assert names(Block()) == DEFAULT


@pytest.mark.parametrize(
    "exclude, gone",
    [
        ("head.out.weight", {"head.out.weight"}),
        ("head.out", {"head.out.weight"}),
        ("head", {"head.proj.weight", "head.out.weight"}),
        ("c*", {n for n in DEFAULT if n.startswith("c")}),
        ("conv?.weight", {"conv1.weight", "conv3.weight"}),
        (nn.MultiheadAttention, {n for n in DEFAULT if n.startswith(("attn", "cross"))}),
        ((nn.Conv1d, nn.Conv3d), {"conv1.weight", "conv3.weight"}),
        (lambda name, module, p: p.numel() > 64, {"attn.in_proj_weight", "conv1.weight", "up.weight", "head.out.weight"}),
        ([nn.Conv1d, ["up", lambda name, module, p: name == "conv3.weight"]], {"conv1.weight", "up.weight", "conv3.weight"}),
    ],
)  # fmt: skip
def test_exclude_by_type_pattern_and_function(exclude, gone):
    assert names(Block(), exclude=exclude) == [n for n in DEFAULT if n not in gone]


@pytest.mark.parametrize(
    "include, added",
    [
        (nn.Embedding, {"emb.weight"}),
        ("emb", {"emb.weight"}),
        ("rnn", {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}),
        (nn.Bilinear, {"bi.weight"}),
        (["bi.*", nn.LSTM], {"bi.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"}),
        (lambda name, module, p: name.startswith("bi"), {"bi.weight"}),  # never a vector, even if asked
        ("norm.weight", {"norm.weight"}),  # a matrix, asked for by its name
    ],
)
def test_include_adds_to_the_default(include, added):
    assert set(names(Block(), include=include)) == {*DEFAULT, *added}


def test_exclude_wins_over_include():
    assert names(Block(), include=nn.Embedding, exclude=["emb", "head"]) == DEFAULT[:-2]


@pytest.mark.parametrize("kwargs", [{"include": "hed.*"}, {"exclude": "hed.*"}, {"include": "norm2"}, {"include": "rnn.bias*"}])
def test_a_pattern_that_matches_nothing_is_an_error(kwargs):
    with pytest.raises(ValueError, match=r"pattern .* matches no"):
        names(Block(), **kwargs)


def test_rules_of_other_types_are_refused():
    with pytest.raises(TypeError, match=r"exclude takes module types, name patterns and functions .* got int"):
        names(Block(), exclude=["head", 3])


def test_a_tied_weight_counts_once_under_its_first_name():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    sparse = dstee.sparsify(model, 0.5)
    assert list(sparse.layers) == ["0.weight"] and sparse.numel == 36
    with pytest.raises(ValueError, match="nothing to make sparse"):
        dstee.sparsify(model, 0.5, exclude="2")  # excluded under its other name


def test_a_weight_tied_to_an_embedding_is_an_embedding():
    block = Block()
    block.head["out"].weight = block.emb.weight
    assert names(block) == DEFAULT[:-1]
    assert "emb.weight" in names(block, include="head.out")


def test_a_shared_module_counts_once():
    shared = nn.Linear(6, 6)
    assert names(nn.Sequential(shared, nn.ReLU(), shared)) == ["0.weight"]


def test_exact_budget_and_zeroed_weights():
    for sparsity, distribution in ((0.0, "erk"), (0.9, "erk"), (0.37, "uniform"), (0.2, "uniform-dense-first")):
        model = mlp()
        before = copy.deepcopy(model.state_dict())
        sparse = dstee.sparsify(model, sparsity, distribution=distribution)
        assert sparse.nnz == round((1 - sparsity) * 153) and sparse.numel == 153
        assert sparse.density() == sparse.nnz / 153
        assert (sparse.layers["0.weight"].nnz == 108) == (distribution == "uniform-dense-first" or sparsity == 0)
        assert_invariant(sparse)
        for name, tensor in model.state_dict().items():
            kept = sparse.mask(name) if name in sparse.layers else torch.ones_like(tensor, dtype=torch.bool)
            assert torch.equal(tensor, before[name] * kept)


def test_explicit_map_and_first_counters():
    sparse = dstee.sparsify(mlp(), {"0.weight": 0.75, "3.weight": 0.0})
    assert [layer.nnz for layer in sparse.layers.values()] == [27, 45]
    for name in sparse.layers:
        assert torch.equal(sparse.counter(name), sparse.mask(name).int())  # N = M


def test_masks_depend_on_seed_and_name_and_not_on_memory_format():
    plain, again, other = (dstee.sparsify(convnet(), 0.7, seed=seed) for seed in (3, 3, 4))
    last = dstee.sparsify(convnet().to(memory_format=torch.channels_last), 0.7, seed=3)
    for name, layer in plain.layers.items():
        assert torch.equal(plain.mask(name), again.mask(name)) and torch.equal(plain.mask(name), last.mask(name))
        assert last.mask(name).stride() == last.layers[name].param.stride()
        expected = random_mask(layer.numel, layer.nnz, 3, name).view(layer.shape)
        assert torch.equal(plain.mask(name), expected)
    assert any(not torch.equal(plain.mask(name), other.mask(name)) for name in plain.layers)
    assert_invariant(last)


def test_counters_only_where_a_method_or_the_user_wants_them():
    assert dstee.sparsify(mlp(), 0.5, method=dstee.RigL()).layers["0.weight"].counts is None
    assert dstee.sparsify(mlp(), 0.5, method=dstee.RigL(), track_exploration=True).layers["0.weight"].counts is not None
    with pytest.raises(ValueError, match=r"0.weight has no counters: SET needs none"):
        dstee.sparsify(mlp(), 0.5, method=dstee.SET()).counter("0.weight")
    with pytest.raises(KeyError, match=r"no sparse layer '1.weight', expected one of 0.weight, 3.weight"):
        dstee.sparsify(mlp(), 0.5).mask("1.weight")


def test_empty_layers_are_left_out():
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 0))
    assert names(model) == ["0.weight"]


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4))


def overlapping() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    return model


def strided() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.randn(4, 8)[:, ::2])
    return model


REFUSED = [
    (
        lambda: nn.Sequential(nn.LayerNorm(4), nn.Embedding(3, 3)),
        {},
        ValueError,
        r"nothing to make sparse.*Embedding, LayerNorm",
    ),
    (mlp, {"exclude": nn.Linear}, ValueError, "nothing to make sparse"),
    (mlp, {"sparsity": 1.0}, ValueError, r"\[0, 1\)"),
    (mlp, {"sparsity": -0.1}, ValueError, r"\[0, 1\)"),
    (mlp, {"sparsity": float("nan")}, ValueError, r"\[0, 1\)"),
    (mlp, {"sparsity": "0.9"}, TypeError, "sparsity must be a number or a dict"),
    (mlp, {"sparsity": 0.9, "distribution": "uniform-dense-first"}, ValueError, "0.weight"),
    (mlp, {"sparsity": {"0.weight": 0.5, "1.weight": 0.5}}, ValueError, "3.weight.*1.weight"),
    (mlp, {"distribution": "er"}, ValueError, "unknown distribution 'er', expected erk, uniform or uniform-dense-first"),
    (mlp, {"distribution": 3}, ValueError, "unknown distribution 3, expected erk, uniform"),
    (mlp, {"method": "rigel"}, ValueError, r"unknown method 'rigel' \(did you mean 'rigl'\?\), expected one of .*rigl"),
    (mlp, {"method": dstee.RigL}, TypeError, "method must be .* one of .*dst-ee.*, got the class RigL: make one"),
    (mlp, {"method": 3}, TypeError, "method must be .* one of .*dst-ee.*, got int"),
    (mlp, {"schedule": 100}, TypeError, "schedule must be a UpdateSchedule, got int"),
    (mlp, {"seed": 0.5}, TypeError, "seed must be an int"),
    (mlp, {"seed": True}, TypeError, "seed must be an int, got bool"),
    (mlp, {"seed": torch.tensor(True)}, TypeError, "seed must be an int, got Tensor"),
    (mlp, {"seed": "3"}, TypeError, "seed must be an int, got str"),
    (lambda: mlp().double(), {}, TypeError, r"0.weight has dtype torch.float64.*ops compute in float32.*model.float\(\)"),
    (lambda: mlp().to("meta"), {}, ValueError, "0.weight is on the meta device"),
    (lazy, {}, ValueError, "0.weight is not initialised yet"),
    (overlapping, {}, ValueError, "0.weight.* and 1.weight.* share storage"),
    (strided, {}, ValueError, "0.weight .* is a view with gaps"),
]


@pytest.mark.parametrize("build, kwargs, error, text", REFUSED)
def test_refusals_come_before_any_change(build, kwargs, error, text):
    model = build()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not isinstance(p, nn.UninitializedParameter)}
    with pytest.raises(error, match=text):
        dstee.sparsify(model, **{"sparsity": 0.5, **kwargs})
    for name, p in model.named_parameters():
        assert p.is_meta or name not in before or torch.equal(p, before[name])


def test_summary_is_an_aligned_table():
    sparse = dstee.sparsify(mlp(), {"0.weight": 0.75, "3.weight": 0.0})
    assert str(sparse.summary()).splitlines() == [
        "layer     shape        density  nnz  dead units       R  R/R_max",
        "0.weight  9x12          0.2500   27      0 of 9  0.2500   1.0000",
        "3.weight  5x9           1.0000   45      0 of 5  1.0000   1.0000",
        "total     153 weights   0.4706   72     0 of 14  0.4706   1.0000",
    ]
    plain = dstee.sparsify(mlp(), 0.5, method=dstee.Static()).summary()
    assert plain.total.explored is None and "R" not in str(plain).splitlines()[0]


def test_a_method_by_its_key_has_its_defaults():
    for key in ("rigl", "RigL", "set", "static", "dst-ee", "DST-EE"):
        assert dstee.sparsify(mlp(), 0.5, method=key).method == dstee.methods.METHODS[key.lower()]()


def test_distributions_in_any_case_and_seeds_of_any_integer_type():
    for name in ("erk", "uniform", "uniform-dense-first"):
        plain, capital = (dstee.sparsify(mlp(), 0.2, distribution=text) for text in (name, name.upper()))
        assert all(torch.equal(plain.mask(n), capital.mask(n)) for n in plain.layers)
    plain = dstee.sparsify(mlp(), 0.5, seed=3)
    for seed in (np.int64(3), np.uint8(3), torch.tensor(3)):
        same = dstee.sparsify(mlp(), 0.5, seed=seed)
        assert type(same.seed) is int and same.state_dict() is not None
        assert all(torch.equal(plain.mask(n), same.mask(n)) for n in plain.layers)
