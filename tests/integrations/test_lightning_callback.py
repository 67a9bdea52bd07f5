"""SparseCallback under the real Lightning: the same bits as by hand, and no way to resume with other masks."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from support.digits_batches import batches, loss, mlp, one_thread  # noqa: F401
from support.host_training import METHODS, OPTIMIZERS, assert_masked, by_hand, outcome, settings, sparse_sgd
from torch import Tensor

import dstee

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: make test-hosts")
SparseCallback = importlib.import_module("dstee.integrations.lightning").SparseCallback
ModelCheckpoint = lightning.callbacks.ModelCheckpoint

pytestmark = pytest.mark.filterwarnings(  # Lightning's own
    "ignore:.*isinstance\\(treespec, LeafSpec\\).* is deprecated:FutureWarning",
    "ignore:The .* does not have many workers",  # batches that lie in memory need none
    "ignore:`training_step` returned `None`",
    "ignore:Be aware that when using `ckpt_path`",  # where the callback that saved is not there when it is loaded
    "ignore:You.re resuming from a checkpoint that ended before the epoch ended",
)


class Module(lightning.LightningModule):
    """Knows nothing of masks."""

    def __init__(self, optimizer: str = "AdamW") -> None:
        super().__init__()
        self.model, self.optimizer = mlp(), optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return loss(self.model, batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", loss(self.model, batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer](self)


def loader(steps: int = 24) -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(list(batches(steps)), batch_size=None)


def make_trainer(*callbacks: Any, epochs: int = 1, **options: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {**quiet, "accelerator": "cpu", "devices": 1, **options}
    return lightning.Trainer(max_epochs=epochs, callbacks=list(callbacks), **options)


def fit(module: Any, masks: Any, *callbacks: Any, resume: Path | None = None, **options: Any) -> dict[str, Any]:
    trainer = make_trainer(masks, *callbacks, **options)
    trainer.fit(module, loader(), ckpt_path=resume)
    return outcome(masks.sparse, trainer.optimizers[0])


# --- steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_unmodified_module_comes_to_the_bits_of_a_training_by_hand(optimizer: str, accumulate: int, clip: Any) -> None:
    masks = SparseCallback(**settings())
    found = fit(Module(optimizer), masks, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    assert found["progress"] == (24 // accumulate, 8 // accumulate)
    assert found == by_hand(batches(24), optimizer, accumulate, clip)
    assert_masked(masks.sparse)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_that_replace_a_step_or_look_before_it(method: dstee.methods.Method, amp: bool) -> None:
    masks = SparseCallback(**settings(method=method))
    found = fit(Module(), masks, **({"plugins": [half_precision()]} if amp else {}))
    assert (found["progress"] == (24, 8)) is not amp and found["progress"][1] > 2
    assert found == by_hand(batches(24), scaler=scaler() if amp else None, half=amp, method=method)


def scaler() -> torch.amp.GradScaler:
    """Its scale is so large that the first gradients overflow, and then one now and then."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=4)


def half_precision() -> Any:
    return lightning.plugins.precision.MixedPrecision("16-mixed", "cpu", scaler())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_that_a_scaler_skips_do_not_count(optimizer: str) -> None:
    masks = SparseCallback(**settings())
    found = fit(Module(optimizer), masks, plugins=[half_precision()])
    assert found["progress"][0] < 22 and found["progress"][1] > 2
    assert found == by_hand(batches(24), optimizer, scaler=scaler(), half=True)


def test_batches_without_a_loss_do_not_count() -> None:
    class Skipping(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 4 == 3 else super().training_step(batch, batch_idx)

    masks = SparseCallback(**settings())
    found = fit(Skipping(), masks)
    assert found == by_hand([batch for i, batch in enumerate(batches(24)) if i % 4 != 3])


class OfItsOwn(Module):
    """Makes its SparseModel itself, for SparseSGD."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.sparse = dstee.sparsify(self, **settings(**more))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sparse_sgd(self, self.sparse)


class Stepping(OfItsOwn):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.sparse.step(optimizer, closure=optimizer_closure)


class Manual(OfItsOwn):
    def __init__(self, own: bool = True, **more: Any) -> None:
        super().__init__(**more)
        self.automatic_optimization, self.own = False, own

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss(self.model, batch))
        self.sparse.step(optimizer) if self.own else optimizer.step()


@pytest.mark.parametrize("make", [OfItsOwn, Stepping, Manual])
def test_modules_that_have_their_own_masks_and_may_step_themselves(make: Any) -> None:
    module = make()
    masks = SparseCallback()
    assert fit(module, masks) == by_hand(batches(24), "SparseSGD")
    assert masks.sparse is module.sparse


def test_manual_steps_must_be_sparse_ones() -> None:
    with pytest.raises(RuntimeError, match=r"call self\.sparse\.step\(self\.optimizers\(\)\) in training_step"):
        fit(Manual(own=False), SparseCallback())


@pytest.mark.parametrize("make", [OfItsOwn, Stepping, Manual])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_in_modules_with_their_own_masks(make: Any, method: dstee.methods.Method) -> None:
    assert fit(make(method=method), SparseCallback()) == by_hand(batches(24), "SparseSGD", method=method)


def test_two_trainings_one_after_the_other() -> None:
    """Of one module it is one training of twice the length; another module gets masks of its own."""
    module, masks = Module(), SparseCallback(**settings())
    fit(module, masks)
    first = masks.sparse
    assert fit(module, masks)["progress"] == (48, 16) and masks.sparse is first
    assert fit(Module(), masks) == by_hand(batches(24)) and masks.sparse is not first


# --- checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Module, OfItsOwn])
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(make: Any, tmp_path: Path) -> None:
    def callback() -> Any:
        return SparseCallback(**settings() if make is Module else {})

    class Invariant(lightning.Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.epochs += 1
            assert_masked(next(c for c in trainer.callbacks if isinstance(c, SparseCallback)).sparse)

    invariant = Invariant()
    whole = fit(make(), callback(), invariant, epochs=4)
    assert invariant.epochs == 4 and whole["progress"] == (96, 32)

    every = ModelCheckpoint(tmp_path, "{epoch}-{step}", save_top_k=-1, every_n_train_steps=20)  # in the midst of epochs, too
    options = {"enable_checkpointing": True, "epochs": 4}
    assert fit(make(), callback(), every, **options) == whole
    for step in (20, 60):
        (file,) = tmp_path.glob(f"*-step={step}.ckpt")
        masks = callback()
        resumed = fit(make(), masks, resume=file, epochs=4)
        if step == 60:  # Lightning begins the batches of the epoch anew, but not those of the next
            assert resumed["progress"] == whole["progress"]


def test_resuming_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    whole = fit(Module(), SparseCallback(**settings()), epochs=4)
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(Module(), SparseCallback(**settings()), save, epochs=2, enable_checkpointing=True)
    assert fit(Module(), SparseCallback(**settings()), resume=tmp_path / "epoch=1.ckpt", epochs=4) == whole


def test_a_checkpoint_without_masks_is_refused(tmp_path: Path) -> None:
    plain = make_trainer(epochs=1)
    plain.fit(Module(), loader())
    plain.save_checkpoint(tmp_path / "dense.ckpt")
    module, masks = Module(), SparseCallback(**settings())
    with pytest.raises(ValueError, match=r"the checkpoint has no sparse state, so it was saved without this callback"):
        fit(module, masks, resume=tmp_path / "dense.ckpt", epochs=2)
    assert masks.sparse.t == 0


def test_weights_of_other_masks_are_refused_before_they_are_stepped(tmp_path: Path) -> None:
    module, masks = Module(), SparseCallback(**settings())
    fit(module, masks)
    other = SparseCallback(**settings(seed=2))
    fit(Module(), other)
    with torch.no_grad():
        for p, q in zip(module.parameters(), other.sparse.model.parameters(), strict=True):
            p.copy_(q)
    with pytest.raises(ValueError, match=r"sparse, but not where the masks are: they belong to other masks"):
        fit(module, masks)


def test_testing_a_checkpoint_takes_its_masks_along(tmp_path: Path) -> None:
    module, masks = Module(), SparseCallback(**settings())
    trainer = make_trainer(masks, epochs=1)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "early.ckpt")
    early = masks.sparse.masks()
    fit(module, masks)
    assert any(not torch.equal(early[name], mask) for name, mask in masks.sparse.masks().items())
    trainer.test(module, loader(), ckpt_path=tmp_path / "early.ckpt", verbose=False)
    assert all(torch.equal(early[name], mask) for name, mask in masks.sparse.masks().items())
    assert_masked(masks.sparse)
    fresh = make_trainer(SparseCallback(**settings()))  # has made no masks, and needs none
    fresh.test(Module(), loader(), ckpt_path=tmp_path / "early.ckpt", verbose=False)


# --- logs, arguments -----------------------------------------------------------------------------------------------------


def test_numbers_go_to_the_trainers_loggers(tmp_path: Path) -> None:
    logger = lightning.loggers.CSVLogger(tmp_path, name="", version="")
    masks = SparseCallback(**settings())
    fit(Module(), masks, logger=logger, log_every_n_steps=6)
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [5, 11, 17, 23]
    assert [float(row["masks/updates"]) for row in rows] == [2, 4, 6, 8]
    explored = [float(row["masks/exploration"]) for row in rows]
    assert explored == sorted(explored) and explored[0] < explored[-1] < 1
    assert float(rows[-1]["masks/exploration"]) == pytest.approx(dstee.metrics.exploration(masks.sparse).total)
    silent = tmp_path / "silent"
    logger = lightning.loggers.CSVLogger(silent, name="", version="")
    fit(Module(), SparseCallback(log=False, **settings()), logger=logger, log_every_n_steps=6)
    assert "masks/" not in "".join(path.read_text() for path in silent.rglob("metrics.csv"))


def test_wrong_arguments_are_refused_where_they_are_given() -> None:
    with pytest.raises(TypeError, match=r"got float; settings of dstee\.sparsify go by name: SparseCallback\(sparsity=0\.9\)"):
        SparseCallback(0.9)
    with pytest.raises(TypeError, match=r"none of dstee\.sparsify: got an unexpected keyword argument 'sparsty'"):
        SparseCallback(sparsty=0.9)
    with pytest.raises(TypeError, match=r"a SparseModel is given and seed, too"):
        SparseCallback(dstee.sparsify(mlp(), 0.8), seed=1)
    with pytest.raises(TypeError, match=r"takes Module\.sparse, which dstee\.sparsify must have made by now, got NoneType"):
        fit(Module(), SparseCallback())
