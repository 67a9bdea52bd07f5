"""Metrics against masks that the tests keep themselves, hand-worked counts and torch's own FLOP counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.shapes import resnet50, resnet50_macs
from dstee import metrics, ops
from dstee.methods import DSTEE, SET, SNFS, RigL, Static
from dstee.optim import SparseSGD
from dstee.schedule import ConstantDrop, UpdateSchedule
from dstee.sparse_model import SparseModel
from dstee.sparsification import sparsify
from dstee.sparsity_distribution import erk

EVERY_STEP = UpdateSchedule(every=1, drop=ConstantDrop(0.3))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3))


def train(sparse: SparseModel, steps: int = 1, seed: int = 0) -> None:
    opt = SparseSGD(sparse.model.parameters(), sparse, lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        opt.zero_grad()
        sparse.model(torch.randn(16, 12, generator=generator)).square().mean().backward()
        sparse.step(opt)


def set_mask(sparse: SparseModel, name: str, mask: torch.Tensor) -> None:
    layer = sparse.layers[name]
    layer.mask_bits, layer.nnz = ops.pack_mask(mask), int(mask.sum())
    layer.param.data.mul_(mask)


# --- exploration, density, churn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [DSTEE(), DSTEE.paper(c=0.1), RigL(), SET()])
def test_exploration_is_the_union_of_all_masks(method):
    sparse = sparsify(mlp(), 0.8, method=method, schedule=EVERY_STEP, track_exploration=True)
    seen = {name: mask.clone() for name, mask in sparse.masks().items()}
    total = sum(mask.numel() for mask in seen.values())
    degrees = [metrics.exploration(sparse).total]
    assert degrees[0] == pytest.approx(0.2, abs=1 / total)
    for seed in range(6):
        train(sparse, seed=seed)
        for name, mask in sparse.masks().items():
            seen[name] |= mask
        found = metrics.exploration(sparse)
        assert found.per_layer == {name: int(mask.sum()) / mask.numel() for name, mask in seen.items()}
        assert found.total == sum(int(mask.sum()) for mask in seen.values()) / total
        degrees.append(found.total)
    assert degrees == sorted(degrees) and degrees[-1] > degrees[0]


def test_exploration_counts_all_layers_in_one_call(monkeypatch):
    sparse, calls = sparsify(mlp(), 0.8), []
    monkeypatch.setattr(ops, "count_explored", lambda c, b: calls.append(len(c)) or torch.tensor([48, 40, 6]))
    assert metrics.exploration(sparse) == metrics.Shares({"0.weight": 0.2, "2.weight": 0.2, "4.weight": 0.2}, 94 / 470)
    assert calls == [3]


def test_exploration_needs_counters():
    with pytest.raises(ValueError, match=r"RigL does not keep: use sparsify\(\.\.\., track_exploration=True\)"):
        metrics.exploration(sparsify(mlp(), 0.8, method=RigL()))


def test_density():
    sparse = sparsify(mlp(), 0.75)
    assert metrics.density(sparse) == sum(int(mask.sum()) for mask in sparse.masks().values()) / 470


@pytest.mark.parametrize("method", [DSTEE(), SET(), Static()])
def test_churn_compares_with_the_mask_before(method):
    sparse = sparsify(mlp(), 0.8, method=method, schedule=EVERY_STEP)
    assert metrics.churn(sparse) == 0.0
    for seed in range(3):
        before = {name: mask.clone() for name, mask in sparse.masks().items()}
        train(sparse, seed=seed)
        swapped = sum(int((mask & ~before[name]).sum()) for name, mask in sparse.masks().items())
        assert metrics.churn(sparse) == swapped / 94
        assert (swapped > 0) == method.updates


# --- dead units ----------------------------------------------------------------------------------------------------------


def test_dead_units_by_hand():
    model = nn.Sequential(nn.Linear(3, 4), nn.Conv1d(1, 3, 2), nn.ConvTranspose1d(4, 4, 3, groups=2))
    sparse = sparsify(model, 0.5)
    set_mask(sparse, "0.weight", torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.bool))
    set_mask(sparse, "1.weight", torch.tensor([[[0, 1]], [[0, 0]], [[1, 1]]], dtype=torch.bool))
    # [in 4, out / groups 2, 3]: inputs 0, 1 feed units 0, 1 and inputs 2, 3 feed units 2, 3. Unit 1 and unit 2 get nothing.
    mask = torch.zeros(4, 2, 3, dtype=torch.bool)
    mask[1, 0, 2] = mask[2, 1, 0] = mask[3, 1, 1] = True
    set_mask(sparse, "2.weight", mask)
    found = metrics.dead_units(sparse)
    assert found.per_layer == {"0.weight": 2 / 4, "1.weight": 1 / 3, "2.weight": 2 / 4}
    assert found.total == 5 / 11


def test_dead_transposed_units_give_zero_outputs():
    torch.manual_seed(1)
    model = nn.ConvTranspose2d(6, 9, 2, groups=3, bias=False)
    sparse = sparsify(model, 0.85, distribution="uniform", seed=3)
    silent = (model(torch.rand(1, 6, 4, 4) + 1) == 0).all(-1).all(-1).sum()
    assert metrics.dead_units(sparse).total == int(silent) / 9 > 0


# --- exploitation --------------------------------------------------------------------------------------------------------


def bits(sparse: SparseModel) -> dict[str, torch.Tensor]:
    return {name: layer.param.detach().view(torch.int32).clone() for name, layer in sparse.layers.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_exploitation_equals_the_loss_of_a_copy_without_the_grown_weights():
    sparse = sparsify(mlp(), 0.7, method=DSTEE(), schedule=UpdateSchedule(every=4, drop=ConstantDrop(0.3)))
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(5))
    train(sparse, steps=3)
    before = {name: mask.clone() for name, mask in sparse.masks().items()}
    train(sparse, steps=3)  # the update, then two steps that move the new weights away from 0
    kept = bits(sparse)
    reference = mlp()
    reference.load_state_dict(sparse.model.state_dict())
    with torch.no_grad():
        grown = 0
        for name, p in reference.named_parameters():
            if name in before:
                new = sparse.mask(name) & ~before[name]
                grown += int((new & (p != 0)).sum())
                p[new] = 0.0
        assert grown > 0
        expected = float(reference(x).square().mean()) - float(sparse.model(x).square().mean())
    assert metrics.exploitation(sparse, lambda: sparse.model(x).square().mean()) == expected != 0
    assert same(bits(sparse), kept)


def test_exploitation_before_the_first_update_is_zero():
    sparse = sparsify(mlp(), 0.7)
    assert metrics.exploitation(sparse, lambda: pytest.fail("nothing to compare")) == 0.0


@pytest.mark.parametrize("fails_at", [1, 2])
def test_weights_come_back_bit_for_bit_after_an_exception(fails_at):
    sparse = sparsify(mlp(), 0.7, schedule=EVERY_STEP)
    train(sparse)
    for name, layer in sparse.layers.items():
        strange = torch.tensor([-0.0, float("nan"), float("-inf"), 1e-42])
        grown = sparse.last_grown(name)
        layer.param.data[grown] = strange.repeat(grown.numel())[: int(grown.sum())]
    kept, calls = bits(sparse), []

    def loss() -> torch.Tensor:
        assert not torch.is_grad_enabled()
        calls.append(all(not layer.param[sparse.last_grown(name)].any() for name, layer in sparse.layers.items()))
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return torch.tensor(1.0)

    with pytest.raises(KeyboardInterrupt):
        metrics.exploitation(sparse, loss)
    assert calls == [False, True][:fails_at]
    assert same(bits(sparse), kept)


def test_exploitation_between_forward_and_backward_goes_unnoticed():
    sparse = sparsify(mlp(), 0.7, schedule=EVERY_STEP)
    train(sparse)
    x = torch.randn(8, 12)
    loss = sparse.model(x).square().mean()
    sparse.model[0].train(False)
    metrics.exploitation(sparse, lambda: sparse.model(x).square().mean())
    assert sparse.model.training and not sparse.model[0].training
    loss.backward()


def test_exploitation_of_channels_last_and_half_precision_weights():
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last).bfloat16()
    sparse = sparsify(model, 0.5, method=SET(), schedule=EVERY_STEP)
    x = torch.rand(2, 3, 5, 5).bfloat16() + 1
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        opt.zero_grad()
        model(x).sum().backward()
        sparse.step(opt)
    model.weight.data[sparse.last_grown("weight")] = 0.5
    kept, grown = model.weight.detach().clone(), sparse.last_grown("weight")
    with torch.no_grad():
        without, present = nn.functional.conv2d(x, kept.masked_fill(grown, 0), model.bias).sum(), model(x).sum()
    assert metrics.exploitation(sparse, lambda: model(x).sum()) == float(without) - float(present) < 0
    assert torch.equal(model.weight, kept) and model.weight.stride() == kept.stride()


# --- FLOPs ---------------------------------------------------------------------------------------------------------------


def test_flops_of_an_mlp_by_hand():
    sparse = sparsify(mlp(), {"0.weight": 0.9, "2.weight": 0.5, "4.weight": 0.0}, method=Static())
    found = metrics.flops(sparse, torch.rand(1, 12))
    assert found.dense_inference == 2 * (12 * 20 + 20 * 10 + 10 * 3)
    assert found.sparse_inference == 2 * (24 + 100 + 30)
    assert (found.dense_training, found.sparse_training) == (3 * 940, 3 * 308)
    assert found.inference_ratio == found.training_ratio == 308 / 940
    assert metrics.flops(sparse, torch.rand(7, 12)).sparse_inference == 7 * 308


class Net(nn.Module):
    """Everything that is counted and much that is not; one layer used twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, groups=2)
        self.line = nn.Conv1d(6, 4, 5, dilation=2)
        self.volume = nn.Conv3d(1, 2, 3)
        self.fc = nn.Linear(16, 16)
        self.unused = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        x = self.up(self.depthwise(self.norm(self.stem(x))).relu()) * scale
        x = self.line(x.flatten(2)[..., :26])
        x = self.volume(x[:, None, :, None].expand(-1, -1, -1, 3, -1))
        return self.fc(self.fc(x))


def test_dense_flops_equal_torchs_counter():
    model, x = Net(), torch.rand(2, 3, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    found = metrics.flops(sparsify(model, 0.5), x)
    assert found.dense_inference == counter.get_total_flops() > 0


def test_sparse_flops_follow_each_layers_density():
    model = Net()
    sparse = sparsify(model, 0.8, exclude=["stem", "fc"])
    x = torch.rand(1, 3, 16, 16)
    dense, whole = metrics.flops(sparse, x), {}
    for name, layer in sparse.layers.items():
        nnz, layer.nnz = layer.nnz, layer.numel
        whole[name] = (metrics.flops(sparse, x).sparse_inference - dense.sparse_inference) * layer.numel / (layer.numel - nnz)
        layer.nnz = nnz
    assert whole["unused.weight"] == 0
    fixed = 2 * (8 * 3 * 9 * 8 * 8 + 2 * 16 * 16 * 4)
    assert fixed + sum(whole.values()) == dense.dense_inference
    expected = fixed + sum(whole[name] * layer.nnz / layer.numel for name, layer in sparse.layers.items())
    assert dense.sparse_inference == pytest.approx(expected, rel=1e-12)


def test_flops_leaves_the_model_as_it_was():
    model = Net().train()
    model.unused.eval()
    sparse = sparsify(model, 0.5)
    modes = [m.training for m in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    metrics.flops(sparse, torch.rand(2, 3, 16, 16))
    with pytest.raises(RuntimeError, match="channels"):
        metrics.flops(sparse, torch.rand(2, 4, 16, 16))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_inputs_as_tuple_and_mapping():
    sparse, x = sparsify(Net(), 0.5), torch.rand(1, 3, 16, 16)
    assert metrics.flops(sparse, (x, 2.0)) == metrics.flops(sparse, {"x": x, "scale": 2.0}) == metrics.flops(sparse, x)


def test_attention_projections():
    # 3 sequences of 5 positions: in_proj 3 x 8 x 8, out_proj 8 x 8, feed-forward 8 -> 16 -> 8
    encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    found = metrics.flops(sparsify(encoder, 0.5, distribution="uniform"), torch.rand(3, 5, 8))
    assert found.dense_inference == 2 * 15 * (3 * 64 + 64 + 2 * 128)
    assert found.sparse_inference == found.dense_inference // 2
    # cross-attention, one packed matrix: 4 queries, 7 keys, 7 values
    found = metrics.flops(sparsify(nn.MultiheadAttention(8, 2), 0.5), (torch.rand(4, 8), torch.rand(7, 8), torch.rand(7, 8)))
    assert found.dense_inference == 2 * (4 * 64 + 7 * 64 + 7 * 64 + 4 * 64)
    found = metrics.flops(sparsify(nn.MultiheadAttention(8, 2), 0.5), (torch.rand(4, 8), torch.rand(6, 8), torch.rand(6, 8)))
    assert found.dense_inference == 2 * (4 * 64 + 6 * 64 + 6 * 64 + 4 * 64)
    # cross-attention: 4 queries, 6 keys and values of other widths
    attention = nn.MultiheadAttention(8, 2, kdim=3, vdim=5, batch_first=True)
    query, key, value = torch.rand(1, 4, 8), torch.rand(1, 6, 3), torch.rand(1, 6, 5)
    sparse = sparsify(attention, 0.5)
    expected = 2 * (4 * 64 + 6 * 24 + 6 * 40 + 4 * 64)
    assert metrics.flops(sparse, (query, key, value)).dense_inference == expected
    assert metrics.flops(sparse, {"query": query, "key": key, "value": value}).dense_inference == expected


def test_computed_weights_are_counted_in_full():
    attention = nn.utils.parametrizations.spectral_norm(nn.MultiheadAttention(8, 2), "in_proj_weight")
    sparse = sparsify(attention, 0.5, exclude="in_proj_weight")
    found = metrics.flops(sparse, (torch.rand(4, 8),) * 3)
    assert (found.dense_inference, found.sparse_inference) == (2 * 4 * 256, 2 * 4 * (192 + 32))


def test_tied_weights_cost_each_use():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    found = metrics.flops(sparsify(model, 0.5), torch.rand(1, 6))
    assert (found.dense_inference, found.sparse_inference) == (2 * 72, 2 * 36)


def test_what_cannot_be_counted_is_refused():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    with pytest.raises(ValueError, match=r"cannot count the FLOPs of 1\.weight"):
        metrics.flops(sparsify(nn.Sequential(nn.Linear(4, 4), Odd()), 0.5, include=Odd), torch.rand(1, 4))
    model = mlp()
    model.forward = lambda x: x
    with pytest.raises(ValueError, match="nothing to count"):
        metrics.flops(sparsify(model, 0.5), torch.rand(1, 12))


@pytest.mark.parametrize(
    ("sparsity", "every", "ratio"), [(0.8, 100, 0.416), (0.8, 4000, 0.414), (0.9, 100, 0.244), (0.9, 4000, 0.242)]
)
def test_resnet50_training_flops(sparsity, every, ratio):
    shapes, macs = resnet50(), resnet50_macs()
    nnz, dense = erk(shapes, sparsity), 2 * sum(macs.values())
    assert dense == pytest.approx(8.18e9, rel=1e-3)
    sparse = 2 * sum(macs[name] * nnz[name] / torch.Size(shape).numel() for name, shape in shapes.items())
    schedule = UpdateSchedule(every=every)
    for method in (RigL(), DSTEE()):
        assert metrics.training_flops(dense, sparse, method, schedule) / (3 * dense) == pytest.approx(ratio, abs=5e-4)
    for method in (SET(), Static()):
        assert metrics.training_flops(dense, sparse, method, schedule) == 3 * sparse


def test_training_flops_by_hand():
    # every = 4, for ever: three steps (3 x 10) and one update (2 x 10 + 100) in four
    assert metrics.training_flops(100, 10, RigL(), UpdateSchedule(every=4)) == (3 * 30 + 120) / 4
    assert metrics.training_flops(100, 10, RigL(), UpdateSchedule(every=1)) == 120
    assert metrics.training_flops(100, 10, SNFS(), UpdateSchedule(every=4, stop=8), 12) == 120  # a dense gradient at every step
    # 12 steps, stop at 9: updates at 4 and 8
    stopped = UpdateSchedule(every=4, stop=9)
    for method in (RigL(), DSTEE(), DSTEE.paper()):  # the order of step and update changes nothing
        assert metrics.training_flops(100, 10, method, stopped, 12) == (10 * 30 + 2 * 120) / 12
    assert metrics.training_flops(100, 10, RigL(), UpdateSchedule(every=4, stop=8), 12) == (11 * 30 + 120) / 12
    assert metrics.training_flops(100, 10, RigL(), stopped, 5) == (4 * 30 + 120) / 5  # ends before the stop
    assert metrics.training_flops(100, 10, RigL(), stopped, 3) == 30  # ends before the first update
    assert metrics.training_flops(100, 10, RigL(), stopped) == (7 * 30 + 2 * 120) / 9  # ends at the stop
    assert metrics.training_flops(100, 10, SET(), stopped, 12) == metrics.training_flops(100, 10, Static(), stopped, 12) == 30
    with pytest.raises(ValueError, match="steps must be the number of optimizer steps"):
        metrics.training_flops(100, 10, RigL(), stopped, 0)


def test_training_flops_of_a_model_that_stops_updating():
    sparse = sparsify(mlp(), 0.9, method=RigL(), schedule=UpdateSchedule(every=20, stop=75))
    found = metrics.flops(sparse, torch.rand(1, 12), steps=100)
    assert (
        found.sparse_training
        == (97 * 3 * found.sparse_inference + 3 * (2 * found.sparse_inference + found.dense_inference)) / 100
    )
    assert found.training_ratio == found.sparse_training / (3 * found.dense_inference)
