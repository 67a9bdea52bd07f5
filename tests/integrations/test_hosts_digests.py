"""The same small training under plain PyTorch, accelerate and Lightning: the same masks after every update."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.digits_batches import batches, loss, mlp, one_thread  # noqa: F401
from torch import Tensor, nn

import dstee
from dstee.experiments.checkpoint import digest

STEPS, EVERY = 36, 3
METHODS = {"dst-ee": dstee.DSTEE(c=1e-2), "rigl": dstee.RigL(order="after"), "set": dstee.SET()}
OPTIMIZERS: dict[str, Callable[[nn.Module, dstee.SparseModel], torch.optim.Optimizer]] = {
    "SparseSGD": lambda m, s: dstee.SparseSGD(m.parameters(), s, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda m, s: torch.optim.AdamW(m.parameters(), lr=1e-2),
}


def setup(method: str, optimizer: str) -> tuple[nn.Module, dstee.SparseModel, torch.optim.Optimizer]:
    model = mlp()
    schedule = dstee.UpdateSchedule(every=EVERY, stop=100)
    sparse = dstee.sparsify(model, 0.8, method=METHODS[method], schedule=schedule, seed=1)
    return model, sparse, OPTIMIZERS[optimizer](model, sparse)


def note(sparse: dstee.SparseModel) -> str:
    return digest({"masks": sparse.masks(), "round": sparse.round, "t": sparse.t})


def whole(sparse: dstee.SparseModel, found: list[str]) -> tuple[list[str], str]:
    return found, digest({name: p.detach() for name, p in sparse.model.state_dict().items()})


def plain(method: str, optimizer: str) -> tuple[list[str], str]:
    model, sparse, opt = setup(method, optimizer)
    found = []
    for batch in batches(STEPS):
        opt.zero_grad()
        loss(model, batch).backward()
        if sparse.step(opt):
            found.append(note(sparse))
    return whole(sparse, found)


def plain_update(method: str, optimizer: str) -> tuple[list[str], str]:
    """Somebody else steps; update() right after."""
    model, sparse, opt = setup(method, optimizer)
    found = []
    for batch in batches(STEPS):
        opt.zero_grad()
        loss(model, batch).backward()
        opt.step()
        if sparse.update(opt):
            found.append(note(sparse))
    return whole(sparse, found)


def with_accelerate(method: str, optimizer: str) -> tuple[list[str], str]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, sparse, opt = setup(method, optimizer)
    model, opt = accelerator.prepare(model, opt)
    found = []
    for batch in batches(STEPS):
        opt.zero_grad()
        accelerator.backward(loss(model, batch))
        if sparse.step(opt):
            found.append(note(sparse))
    return whole(sparse, found)


def with_accelerate_accumulation(method: str, optimizer: str) -> tuple[list[str], str]:
    """The same batch twice at half the weight: powers of two, so the same gradient; the half steps do not count."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, sparse, opt = setup(method, optimizer)
    model, opt = accelerator.prepare(model, opt)
    found = []
    for batch in batches(STEPS):
        for _ in range(2):
            with accelerator.accumulate(model):
                accelerator.backward(loss(model, batch))
                if sparse.step(opt):
                    found.append(note(sparse))
                opt.zero_grad()
    return whole(sparse, found)


class Batches(torch.utils.data.IterableDataset):
    """Each batch ``times`` times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (batch for batch in batches(STEPS) for _ in range(self.times))


def lightning_run(method: str, optimizer: str, own_step: bool, accumulate: int) -> tuple[list[str], str]:
    import lightning

    model, sparse, opt = setup(method, optimizer)
    found: list[str] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return loss(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return opt

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            if not own_step:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            elif sparse.step(optimizer, closure=optimizer_closure):
                found.append(note(sparse))

        def on_train_batch_end(self, *args: Any) -> None:
            if not own_step and sparse.update(self.optimizers()):
                found.append(note(sparse))

    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how its data loader wants to be set up
        trainer.fit(Module(), torch.utils.data.DataLoader(Batches(accumulate), batch_size=None))
    return whole(sparse, found)


def with_lightning(method: str, optimizer: str) -> tuple[list[str], str]:
    """sparse.step in optimizer_step: Lightning runs forward and backward inside the closure."""
    return lightning_run(method, optimizer, own_step=True, accumulate=1)


def with_lightning_accumulation(method: str, optimizer: str) -> tuple[list[str], str]:
    return lightning_run(method, optimizer, own_step=True, accumulate=2)


def with_lightning_update(method: str, optimizer: str) -> tuple[list[str], str]:
    """Lightning steps; update() in the hook after it, when the gradients are still there."""
    return lightning_run(method, optimizer, own_step=False, accumulate=1)


def host(run: Callable[..., Any], package: str | None = None) -> Any:
    missing = package is not None and importlib.util.find_spec(package) is None
    marks = [pytest.mark.skip(reason=f"{package} is not installed")] if missing else []
    if package:
        marks.append(pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"))  # of its imports
    return pytest.param(run, id=run.__name__, marks=marks)


HOSTS = [
    host(plain_update),
    host(with_accelerate, "accelerate"),
    host(with_accelerate_accumulation, "accelerate"),
    host(with_lightning, "lightning"),
    host(with_lightning_accumulation, "lightning"),
    host(with_lightning_update, "lightning"),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("run", HOSTS)
def test_every_update_leaves_the_same_masks_and_the_training_the_same_weights(run, method, optimizer):
    expected, weights = plain(method, optimizer)
    assert len(expected) == STEPS // EVERY and len(set(expected)) == len(expected)
    found, other = run(method, optimizer)
    assert found == expected
    assert other == weights
