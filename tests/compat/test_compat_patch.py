"""``patch``: live objects of other libraries compute on our kernels, keep their state, and can be put back."""

from __future__ import annotations

import io
import socket
from typing import Any

import pytest
import torch
from support.compat_originals import ItopMasking, batches, mlp, namespace, original_rigl, single_thread
from test_compat_rigl_torch import agreeing, train
from torch import Tensor, nn

from dstee.compat import patch, unpatch
from dstee.compat.rigl_torch import RigLScheduler
from dstee.compat.sparselearning import Masking

__all__ = ["single_thread"]  # a fixture that every test here uses


# --- rigl_torch ----------------------------------------------------------------------------------------------------------


def patched_rigl(*args: Any, **options: Any) -> Any:
    return patch(original_rigl().RigLScheduler(*args, **options))


@pytest.mark.parametrize("window", [1, 3])
def test_a_patched_scheduler_trains_as_before(window: int) -> None:
    theirs, their_model, _ = train(original_rigl().RigLScheduler, grad_accumulation_n=window)
    ours, our_model, pruner = train(patched_rigl, grad_accumulation_n=window)
    assert len(theirs) == 14 and agreeing(theirs, ours) == 14
    for p, q in zip(their_model.parameters(), our_model.parameters(), strict=True):
        assert torch.equal(p, q)
    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)  # its own checkpoint, unchanged


def test_patch_and_unpatch_during_training() -> None:
    theirs, _, _ = train(original_rigl().RigLScheduler)

    class Switching:
        """Patched from the 4th update to the 8th."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self.inner = original_rigl().RigLScheduler(*args, **options)
            self.patched: list[bool] = []

        def __call__(self) -> bool:
            if self.inner.rigl_steps == 3 and "_rigl_step" not in vars(self.inner):
                assert patch(self.inner) is self.inner
            if self.inner.rigl_steps == 8 and "_rigl_step" in vars(self.inner):
                assert unpatch(self.inner) is self.inner
            going = self.inner()
            if not going:
                self.patched.append("_rigl_step" in vars(self.inner))
            return going

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    ours, _, switching = train(Switching)
    assert agreeing(theirs, ours) == 14
    assert switching.patched == [False] * 3 + [True] * 5 + [False] * 6


# --- sparselearning ------------------------------------------------------------------------------------------------------


def itop(growth: str, death: str = "magnitude", density: float = 0.2) -> tuple[ItopMasking, nn.Module]:
    model = mlp()
    torch.manual_seed(3)
    masking = ItopMasking(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4), 0.3, death, growth, every=4
    )
    masking.add_module(model, density)
    return masking, model


def run(masking: Any, model: nn.Module, steps: int) -> list[dict[str, Tensor]]:
    trajectory = []
    for X, y in batches(steps):
        masking.optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        masking.step()
        if masking.steps % 4 == 0:
            trajectory.append({name: mask.clone() for name, mask in masking.masks.items()})
    return trajectory


def test_patched_masking_agrees_where_there_are_no_ties() -> None:
    masking, model = itop("gradient")
    theirs = run(masking, model, 52)
    masking, model = itop("gradient")
    masks = dict(masking.masks)
    patch(masking)
    addresses = [p.data_ptr() for p in model.parameters()]
    ours = run(masking, model, 52)
    assert len(theirs) == 13
    for a, b in zip(theirs, ours, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert addresses == [p.data_ptr() for p in model.parameters()]
    assert all(masking.masks[name] is mask for name, mask in masks.items())  # state shared


@pytest.mark.parametrize("growth", ["random", "random_unfired", "momentum", "gradient"])
@pytest.mark.parametrize("death", ["magnitude", "SET", "Taylor_FO"])
def test_a_patched_masking_keeps_its_density(death: str, growth: str) -> None:
    masking, model = itop(growth, death)
    patch(masking)
    numbers = {name: int(mask.sum()) for name, mask in masking.masks.items()}
    trajectory = run(masking, model, 24)
    assert len(trajectory) == 6
    for masks in trajectory:
        assert {name: int(mask.sum()) for name, mask in masks.items()} == numbers
    changed = {name: not torch.equal(trajectory[0][name], trajectory[-1][name]) for name in numbers}
    assert all(changed.values())
    for name, p in masking.weights().items():
        assert not p[masking.masks[name] == 0].any()
        assert bool(((masking.fired_masks[name] != 0) >= (masking.masks[name] != 0)).all())
    assert masking.num_remove == {name: -(-3 * n // 10) for name, n in numbers.items()}
    shares, total = masking.fired_masks_update()
    assert shares.keys() == numbers.keys() and 0.2 < total <= 1


def test_unpatch_gives_the_original_back() -> None:
    masking, model = itop("gradient")
    before = set(vars(masking))
    patch(masking)
    run(masking, model, 8)
    unpatch(masking)
    assert set(vars(masking)) == before
    address = model[0].weight.data_ptr()  # type: ignore[index,union-attr]
    run(masking, model, 1)
    assert model[0].weight.data_ptr() != address  # type: ignore[index,union-attr]  # rebinds its weights again


# --- errors --------------------------------------------------------------------------------------------------------------


def test_unsupported_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot patch a Linear: expected a rigl_torch RigLScheduler or"):
        patch(nn.Linear(1, 1))
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="Masking is dstee's own"):
        patch(Masking(optimizer, args=namespace(), growth_mode="gradient"))
    with pytest.raises(TypeError, match="RigLScheduler is dstee's own"):
        patch(RigLScheduler(model, optimizer, 0.5, 100))
    masking, _ = itop("gradient")
    with pytest.raises(ValueError, match="is not patched"):
        unpatch(masking)
    patch(masking)
    with pytest.raises(ValueError, match="is patched already"):
        patch(masking)
    with pytest.raises(ValueError, match="growth mode 'momentum_neuron' is not supported by patch"):
        patch(itop("momentum_neuron")[0])
    empty = ItopMasking(optimizer, 0.3, "magnitude", "gradient", 4)
    with pytest.raises(ValueError, match="no masks yet"):
        patch(empty)


# --- several ranks -------------------------------------------------------------------------------------------------------


def _rank(rank: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {}
    for exact in ("fixed", "legacy"):
        torch.manual_seed(rank)
        layer = nn.Linear(8, 1, bias=False)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        pruner = RigLScheduler(layer, optimizer, 0.5, 100, delta=2, alpha=0.5, ignore_linear_layers=False, exact=exact)
        mask = pruner.backward_masks[0]
        assert mask is not None
        found[f"{exact} initial"] = mask.tolist()
        mask.copy_(torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]]))
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[0.1, 0.2, 0.3, 0.4, 0, 0, 0, 0]]))
        # one weight of four: at index 4 the ranks cancel (mean 0, mean of absolutes 9), at index 6 they agree (5 and 5)
        gradient = torch.tensor([[0.0, 0, 0, 0, 9 - 18 * rank, 1, 5, 2]])
        for _ in range(2):
            layer(gradient).sum().backward()
            pruner()
        found[exact] = mask.int().flatten().tolist()
    torch.manual_seed(rank)
    layer = nn.Linear(64, 4)
    masking = Masking(torch.optim.SGD(layer.parameters(), lr=0.0), growth_mode="random", args=namespace())
    masking.add_module(layer, 0.3)
    layer(torch.ones(1, 64)).sum().backward()
    found["Masking initial"] = masking.masks["weight"].tolist()
    results.put((rank, found))
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_ranks_agree() -> None:
    """The mean gradient decides; the original's mean of local absolutes does with exact="legacy"."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
    assert found[0] == found[1]
    assert found[0]["fixed"] == [0, 1, 1, 1, 0, 0, 1, 0]
    assert found[0]["legacy"] == [0, 1, 1, 1, 1, 0, 0, 0]
