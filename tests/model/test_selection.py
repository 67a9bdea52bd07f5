"""Which matrices sparsify takes, which it leaves dense, and what it says about them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from support.small_models import Experts, mlp
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import dstee
from dstee import metrics

STAY_DENSE = r"of the matrix weights stay dense"


def sparsify(model: nn.Module, **kwargs) -> dstee.SparseModel:
    """Whether it warns is the matter of other tests."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", rf"\d+% {STAY_DENSE}")
        return dstee.sparsify(model, 0.5, **kwargs)


class Conv1D(nn.Module):
    """As in transformers.pytorch_utils: a linear layer with weights [in, out]."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.02)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class GPT2(nn.Module):
    """The layers of a GPT-2 for classification: everything but the last is Conv1D or embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe, self.ln = nn.Embedding(50, 48), nn.Embedding(16, 48), nn.LayerNorm(48)
        self.h = nn.ModuleList(
            nn.ModuleDict({"c_attn": Conv1D(144, 48), "c_proj": Conv1D(48, 48), "c_fc": Conv1D(192, 48)}) for _ in range(2)
        )
        self.score = nn.Linear(48, 2, bias=False)


class StdConv2d(nn.Conv2d):
    """As in timm."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        mean, std = w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (w - mean) / (std + 1e-6), self.bias)


class ScaledStdConv2d(StdConv2d):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.tanh(), self.bias)


class OwnConv(nn.Conv1d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Renamed(nn.Linear):
    """A subclass that computes as torch does."""

    def extra_repr(self) -> str:
        return "renamed"


class ListedExperts(nn.Module):
    """Experts in a container of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(3, 4, 5)])


def beside(module: nn.Module) -> nn.Sequential:
    """``module`` in front of a layer that is large enough to keep the warning away."""
    return nn.Sequential(module, nn.Linear(64, 256))


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def half_frozen_attention() -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    attention.q_proj_weight.requires_grad_(False)
    return attention


TAKEN_BY_INCLUDE = {
    "LSTM": (lambda: nn.LSTM(4, 3), r"recurrent \(LSTM\)", {"weight_ih_l0", "weight_hh_l0"}),
    "GRU": (lambda: nn.GRU(4, 3), r"recurrent \(GRU\)", {"weight_ih_l0", "weight_hh_l0"}),
    "cell": (lambda: nn.LSTMCell(4, 3), r"recurrent \(LSTMCell\)", {"weight_ih", "weight_hh"}),
    "experts": (Experts, "of three dimensions, as of stacked experts, in Experts", {"gate_up", "down"}),
    "listed experts": (ListedExperts, "of three dimensions, as of stacked experts, in ParameterList", {"weights.0"}),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), "in Bilinear, which is no Linear", {"weight"}),
    "frozen": (lambda: frozen(nn.Linear(4, 4)), r"frozen \(requires_grad is False\)", {"weight"}),
    "frozen Conv1D": (lambda: frozen(Conv1D(4, 6)), "frozen", {"weight"}),
    "own forward": (lambda: OwnLinear(4, 4), "class OwnLinear has a forward of its own", {"weight"}),
    "own conv": (lambda: OwnConv(4, 4, 3), "class OwnConv has a forward of its own", {"weight"}),
}


@pytest.mark.parametrize("kind", TAKEN_BY_INCLUDE)
def test_what_stays_dense_is_named_and_the_named_include_takes_it(kind):
    build, reason, attributes = TAKEN_BY_INCLUDE[kind]
    sparse = sparsify(beside(build()))
    assert list(sparse.layers) == ["1.weight"]
    (left,) = sparse.left_out
    assert set(left.names) == {f"0.{a}" for a in attributes}
    assert left.numel == sum(sparse.model.get_parameter(name).numel() for name in left.names)
    assert str(sparse.summary()).splitlines()[-1] == str(left)
    with pytest.warns(UserWarning, match=f"left dense: {left.numel} weights .*{reason}"):
        dstee.sparsify(nn.Sequential(build(), nn.Linear(5, 4)), 0.5)
    taken = sparsify(beside(build()), include=list(left.include))
    assert set(taken.layers) == {"1.weight", *left.names} and taken.left_out == ()
    assert sum(int(mask.sum()) for mask in taken.masks().values()) == taken.nnz


def weight_norm_hook() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(4, 4))


def tanh_weight(module: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", nn.Tanh())


COMPUTED = {
    "parametrized": (lambda: tanh_weight(nn.Linear(4, 4)), "remove_parametrizations"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "remove_parametrizations"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), "remove_parametrizations"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "remove_parametrizations"),
    "weight norm hook": (weight_norm_hook, "remove_weight_norm"),
    "spectral norm hook": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "remove_spectral_norm"),
    "prune": (lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), "prune.remove"),
    "LSTM weight norm": (lambda: parametrizations.weight_norm(nn.LSTM(4, 4), "weight_hh_l0"), "remove_parametrizations"),
    "StdConv2d": (lambda: StdConv2d(4, 4, 3), "convolution without standardization"),
    "ScaledStdConv2d": (lambda: ScaledStdConv2d(4, 4, 3), "convolution without standardization"),
}  # fmt: skip


@pytest.mark.parametrize("kind", COMPUTED)
def test_parameters_of_a_computed_weight_stay_dense_and_are_refused_under_include(kind):
    build, remedy = COMPUTED[kind]
    sparse = sparsify(beside(build()))
    assert list(sparse.layers) == ["1.weight"]
    left = next(left for left in sparse.left_out if not left.include)
    assert remedy in left.remedy and remedy in str(left) and "from which a module computes its weight" in str(left)
    everything = {name for name, p in sparse.model[0].named_parameters() if p.dim() > 1 and name != "gain"}
    assert {name.removeprefix("0.") for entry in sparse.left_out for name in entry.names} == everything
    rules = ["0", "*", *left.names, lambda name, module, p: name in left.names, type(build())]
    for rule in rules:
        model = beside(build())
        before = copy.deepcopy(model.state_dict())
        if isinstance(rule, type) and "original" in str(left.names):
            continue  # they belong to another module
        if rule == "0" and kind == "orthogonal":
            continue
        with pytest.raises(ValueError, match=rf"include= takes parameters that cannot be masked(.|\n)*0\..*{remedy}") as error:
            sparsify(model, include=rule)
        if rule == "*" or isinstance(rule, type):  # both halves of a pair, by name
            assert all(name in str(error.value) for name in left.names)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert list(sparsify(beside(build()), include="*", exclude="0").layers) == ["1.weight"]
    model = beside(build())
    masks = {name: torch.ones_like(model.get_parameter(name)) for name in ("1.weight", *left.names)}
    with pytest.raises(ValueError, match=rf"masks= takes parameters that cannot be masked(.|\n)*0\..*{remedy}"):
        dstee.sparsify(model, masks=masks)


def test_a_computed_weight_is_excluded_by_its_own_name():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    sparse = dstee.sparsify(model, 0.5, exclude="0.weight")  # no warning: it is meant
    assert list(sparse.layers) == ["1.weight"] and sparse.left_out == ()


def test_modules_inside_a_parametrization_stay_dense():
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

        def forward(self, w: Tensor) -> Tensor:
            return w + self.up.weight @ self.down.weight

    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", LowRank())
    sparse = sparsify(beside(layer))
    assert list(sparse.layers) == ["1.weight"]
    assert len(sparse.left_out[0].names) == 3


def test_query_key_and_value_are_sparse_together_or_not_at_all():
    sparse = sparsify(nn.Sequential(half_frozen_attention(), nn.Linear(64, 256)))
    assert list(sparse.layers) == ["0.out_proj.weight", "1.weight"]
    assert {name for left in sparse.left_out for name in left.names} == {f"0.{n}_proj_weight" for n in "qkv"}
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    assert list(sparsify(parametrizations.spectral_norm(attention, "k_proj_weight")).layers) == ["out_proj.weight"]
    taken = sparsify(half_frozen_attention(), include="q_proj_weight")
    assert list(taken.layers) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


def test_a_tied_weight_needs_every_owner():
    for other in (OwnLinear(4, 4), StdConv2d(4, 4, 1)):
        model = nn.Sequential(
            nn.Linear(4, 4) if isinstance(other, nn.Linear) else nn.Conv2d(4, 4, 1), other, nn.Linear(64, 256)
        )
        model[1].weight = model[0].weight
        sparse = sparsify(model)
        assert list(sparse.layers) == ["2.weight"] and sparse.left_out[0].names == ("0.weight",)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: parametrize.register_parametrization(m, "bias", nn.Identity())])
def test_subclasses_that_compute_as_torch_does_are_as_before(wrap):
    model = nn.Sequential(wrap(Renamed(8, 8)), wrap(nn.Linear(8, 8)))
    model[1].forward = model[1].forward  # a wrapper of the instance, as accelerate's hooks, is no forward of the class
    sparse = dstee.sparsify(model, 0.5)
    assert list(sparse.layers) == ["0.weight", "1.weight"] and sparse.left_out == ()


def test_tokens_positions_and_gains_are_no_matrices():
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token, self.positions = nn.Parameter(torch.randn(1, 1, 9)), nn.Parameter(torch.randn(1, 99, 9))
            self.gain = nn.Parameter(torch.ones(9, 1, 1))

    sparse = dstee.sparsify(nn.Sequential(Embeddings(), nn.Linear(9, 9)), 0.5)
    assert list(sparse.layers) == ["1.weight"] and sparse.left_out == ()
    assert "0.positions" in dstee.sparsify(nn.Sequential(Embeddings(), nn.Linear(9, 9)), 0.5, include="0.positions").layers


def test_ten_per_cent_may_stay_dense_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dstee.sparsify(nn.Sequential(nn.Linear(10, 9), nn.Bilinear(1, 1, 10)), 0.5).left_out[0].numel == 10
        dstee.sparsify(nn.Sequential(nn.Linear(10, 9), nn.LSTM(9, 9)), 0.5, exclude=nn.LSTM)  # the user's own
        dstee.sparsify(nn.Sequential(nn.Linear(10, 9), nn.Embedding(99, 9), nn.LayerNorm([9, 9])), 0.5)
    with pytest.warns(
        UserWarning, match=f"11% {STAY_DENSE}(.|\n)*left dense: 11 weights in Bilinear.*include=\\['1.weight'\\]"
    ):
        dstee.sparsify(nn.Sequential(nn.Linear(10, 9), nn.Bilinear(1, 1, 11)), 0.5)


def test_a_warning_made_an_error_leaves_the_model_as_it_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    before = model[0].weight.detach().clone()
    with pytest.raises(UserWarning):
        dstee.sparsify(model, 0.5)  # the tests make warnings errors
    assert torch.equal(model[0].weight, before)


def test_many_names_become_one_pattern_only_where_it_matches_nothing_else():
    layers = [frozen(nn.Linear(4, 4)) for _ in range(5)]
    sparse = sparsify(nn.ModuleDict({"body": nn.ModuleList(layers), "head": nn.Linear(64, 64)}))
    assert sparse.left_out[0].include == ("body.*.weight",) and "and 2 more" in str(sparse.left_out[0])
    mixed = sparsify(nn.ModuleList([*layers[:2], nn.Linear(64, 64), nn.Bilinear(2, 2, 2)]))
    assert mixed.left_out[0].include == ("0.weight", "1.weight")


def test_nothing_left_says_what_was_left_out():
    with pytest.raises(ValueError, match=r"nothing to make sparse.*left dense: 108 weights frozen .*0\.weight.*include="):
        dstee.sparsify(frozen(nn.Sequential(nn.Linear(12, 9))), 0.5)


def test_left_out_survives_copies_and_given_masks_leave_nothing_out():
    sparse = sparsify(beside(nn.LSTM(4, 3)))
    assert copy.deepcopy(sparse).left_out == sparse.left_out
    assert dstee.sparsify(mlp(), 0.5).left_out == ()


# --- Conv1D --------------------------------------------------------------------------------------------------------------


def test_gpt2_is_sparse_in_its_conv1d_layers():
    sparse = dstee.sparsify(GPT2(), 0.9)
    assert sparse.numel == 2 * (48 * 144 + 48 * 48 + 48 * 192) + 96
    assert "h.1.c_fc.weight" in sparse.layers and "wte.weight" not in sparse.layers and sparse.left_out == ()


def test_other_classes_of_that_name_are_not_taken_for_conv1d():
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

    assert sparsify(beside(Conv1D())).left_out[0].names == ("0.weight",)


def test_dead_units_and_flops_of_conv1d():
    layer = Conv1D(3, 5)
    sparse = dstee.sparsify(layer, 0.6)
    layer_mask = torch.zeros(5, 3, dtype=torch.bool)
    layer_mask[:, 1] = True
    state = sparse.layers["weight"]
    state.mask_bits, state.nnz = dstee.ops.pack_mask(layer_mask), 5
    assert metrics.dead_units(sparse).total == 2 / 3
    found = metrics.flops(sparse, torch.rand(1, 7, 5))
    assert (found.dense_inference, found.sparse_inference) == (2 * 7 * 15, 2 * 7 * 5)
