"""accelerate: prepared optimizers in sparse.step, and states that save_state keeps."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from support.digits_batches import batches, loss, mlp, one_thread  # noqa: F401
from support.host_training import OPTIMIZERS, Network, assert_masked, by_hand, outcome, settings

import dstee

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: make test-hosts")
register = importlib.import_module("dstee.integrations.accelerate").register


class Run:
    """A training under accelerate, up to the point where its batches come."""

    def __init__(self, optimizer: str = "AdamW", accumulate: int = 1, scaler: Any = None, keep: bool = True) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        network = Network()
        self.sparse = dstee.sparsify(network, **settings())
        self.core = OPTIMIZERS[optimizer](network)
        self.accelerator.scaler = scaler  # mixed_precision="fp16" makes one, on a GPU
        self.network, self.optimizer = self.accelerator.prepare(network, self.core)
        if keep:
            register(self.accelerator, self.sparse)

    def train(self, some: Any, clip: float | None = None, half: bool = False) -> None:
        for batch in some:
            with self.accelerator.accumulate(self.network):
                with torch.autocast("cpu", torch.float16, enabled=half):
                    value = loss(self.network.model, batch)
                self.accelerator.backward(value)
                if clip is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.network.parameters(), clip)
                self.sparse.step(self.optimizer)
                self.optimizer.zero_grad()

    def outcome(self) -> dict[str, Any]:
        return outcome(self.sparse, self.core)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_bits_of_a_training_by_hand(optimizer: str, accumulate: int, clip: Any) -> None:
    run = Run(optimizer, accumulate)
    run.train(batches(24), clip)
    assert run.outcome() == by_hand(batches(24), optimizer, accumulate, clip)
    assert run.sparse.t == 24 // accumulate
    assert_masked(run.sparse)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_that_a_scaler_skips_do_not_count(optimizer: str) -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=4)

    run = Run(optimizer, scaler=scaler())
    run.train(batches(24), half=True)
    assert run.sparse.t < 22 and run.sparse.round > 2
    assert run.outcome() == by_hand(batches(24), optimizer, scaler=scaler(), half=True)


def test_a_loaded_state_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    all_batches = list(batches(40))
    whole = Run()
    whole.train(all_batches)
    first = Run()
    first.train(all_batches[:20])
    first.accelerator.save_state(tmp_path)
    resumed = Run()
    resumed.accelerator.load_state(tmp_path)
    assert resumed.sparse.t == 20 and resumed.sparse.round == 6
    resumed.train(all_batches[20:])
    assert resumed.outcome() == whole.outcome() and resumed.sparse.t == 40


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    forgetful = Run(keep=False)
    forgetful.train(batches(8))
    forgetful.accelerator.save_state(tmp_path)
    with pytest.raises(RuntimeError, match=r"[Nn]umber of (custom checkpoints|registered)"):
        Run().accelerator.load_state(tmp_path)


def test_damage_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    run = Run()
    run.train(batches(8))
    run.accelerator.save_state(tmp_path)
    (file,) = tmp_path.glob("custom_checkpoint_*.pkl")
    saved = torch.load(file, weights_only=True)
    saved["layers"]["model.0.weight"]["mask"][0] ^= 1
    torch.save(saved, file)
    other = Run()
    before = other.outcome()
    with pytest.raises(ValueError, match=r"model\.0\.weight: mask is damaged: its digest does not match"):
        other.accelerator.load_state(tmp_path)
    assert other.outcome()["masks"] == before["masks"] and other.sparse.t == 0


def test_only_a_sparse_model_is_registered() -> None:
    with pytest.raises(TypeError, match=r"got Sequential"):
        register(accelerate.Accelerator(cpu=True), mlp())
