"""SparseCallback under the real Trainer of transformers: the same bits as by hand, and no way to resume with other masks."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.digits_batches import batches, one_thread  # noqa: F401
from support.host_training import METHODS, OPTIMIZERS, Network, assert_masked, by_hand, outcome, settings, sparse_sgd
from torch import Tensor

import dstee

transformers = pytest.importorskip("transformers", reason="transformers is not installed: make test-hosts")
pytest.importorskip("accelerate", reason="accelerate is not installed: make test-hosts")
SparseCallback = importlib.import_module("dstee.integrations.transformers").SparseCallback

SIZE = 64  # of a batch


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The rows of the batches of a training by hand, in its order."""

    def __init__(self, steps: int) -> None:
        x, y = zip(*batches(steps, SIZE), strict=True)
        self.x, self.y = torch.cat(x), torch.cat(y)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "labels": self.y[i]}


class Run:
    def __init__(
        self, folder: Path, *callbacks: Any, optimizer: str = "AdamW", epochs: int = 1, masks: bool = True,
        measured: Any = None, more: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        self.network = Network()
        self.sparse = dstee.sparsify(self.network, **settings(**(more or {})))
        if optimizer == "SparseSGD":
            self.core: Any = sparse_sgd(self.network, self.sparse)
        else:
            self.core = OPTIMIZERS[optimizer](self.network)
        self.callback = SparseCallback(self.sparse)
        chosen = {
            "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": "none",
            "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", "train_sampling_strategy": "sequential", **options,
        }  # fmt: skip
        args = transformers.TrainingArguments(str(folder), num_train_epochs=epochs, per_device_train_batch_size=SIZE, **chosen)
        constant = torch.optim.lr_scheduler.LambdaLR(self.core, lambda step: 1.0)
        self.trainer = transformers.Trainer(
            self.network, args, train_dataset=Rows(24), optimizers=(self.core, constant),
            eval_dataset=Rows(1), compute_metrics=measured,
            callbacks=[*([self.callback] if masks else []), *callbacks],
        )  # fmt: skip

    def train(self, resume: Any = None) -> dict[str, Any]:
        self.trainer.train(resume_from_checkpoint=resume)
        return outcome(self.sparse, self.core)


# --- steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_bits_of_a_training_by_hand(tmp_path: Path, optimizer: str, accumulate: int, clip: float) -> None:
    run = Run(tmp_path, optimizer=optimizer, gradient_accumulation_steps=accumulate, max_grad_norm=clip)
    found = run.train()
    assert found["progress"] == (24 // accumulate, 8 // accumulate)
    assert found == by_hand(batches(24), optimizer, accumulate, clip or None)
    assert_masked(run.sparse)


def test_sparse_sgd(tmp_path: Path) -> None:
    assert Run(tmp_path, optimizer="SparseSGD").train() == by_hand(batches(24), "SparseSGD")


def scaler() -> torch.amp.GradScaler:
    """Its scale is so large that the first gradients overflow, and then one now and then."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=4)


def with_scaler(run: Run) -> Run:
    """On a GPU fp16=True does this; on a CPU the Trainer has no fp16."""
    run.network.half, run.trainer.accelerator.scaler = True, scaler()
    return run


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_that_a_scaler_skips_do_not_count(tmp_path: Path, optimizer: str) -> None:
    found = with_scaler(Run(tmp_path, optimizer=optimizer)).train()
    assert found["progress"][0] < 22 and found["progress"][1] > 2
    assert found == by_hand(batches(24), optimizer, scaler=scaler(), half=True)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_that_replace_a_step_or_look_before_it(tmp_path: Path, method: dstee.methods.Method, amp: bool) -> None:
    run = Run(tmp_path, more={"method": method})
    found = (with_scaler(run) if amp else run).train()
    assert (found["progress"] == (24, 8)) is not amp and found["progress"][1] > 2
    assert found == by_hand(batches(24), scaler=scaler() if amp else None, half=amp, method=method)


def test_two_trainings_one_after_the_other(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train()
    assert run.train()["progress"] == (48, 16)


# --- checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["AdamW", "SparseSGD"])
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(tmp_path: Path, optimizer: str) -> None:
    class Invariant(transformers.TrainerCallback):
        epochs = 0

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            self.epochs += 1
            assert_masked(straight.sparse)

    invariant = Invariant()
    straight = Run(tmp_path / "whole", invariant, optimizer=optimizer, epochs=3)
    whole = straight.train()
    assert invariant.epochs == 3 and whole["progress"] == (72, 24)

    saving = {"optimizer": optimizer, "epochs": 3, "save_strategy": "steps", "save_steps": 20}
    assert Run(tmp_path / "saved", **saving).train() == whole
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "checkpoint-20",
        "checkpoint-40",
        "checkpoint-60",
        "checkpoint-72",
    ]
    for step in (20, 60):
        again = Run(tmp_path / "saved", **saving)
        assert again.train(str(tmp_path / "saved" / f"checkpoint-{step}")) == whole
    shutil.rmtree(tmp_path / "saved" / "checkpoint-72")
    assert Run(tmp_path / "saved", **saving).train(True) == whole  # from the last


def test_resuming_from_a_folder_of_another_run(tmp_path: Path) -> None:
    whole = Run(tmp_path / "a", save_strategy="steps", save_steps=10).train()
    folder = tmp_path / "a" / "checkpoint-10"
    other = Run(tmp_path / "b")
    with pytest.raises(dstee.CheckpointError, match=r"sparse\.pt is missing: .*call callback\.load\(folder\)"):
        other.train(str(folder))
    other = Run(tmp_path / "b")
    other.callback.load(folder)
    assert other.train(str(folder)) == whole


def test_a_checkpoint_without_masks_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, masks=False, save_strategy="steps", save_steps=10).train()
    run = Run(tmp_path)
    with pytest.raises(dstee.CheckpointError, match=r"checkpoint-24.sparse\.pt is missing: the checkpoint was saved without"):
        run.train(True)
    assert run.sparse.t == 0


def test_masks_of_other_checkpoints_are_refused(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 10}
    Run(tmp_path / "a", **options).train()
    Run(tmp_path / "b", more={"seed": 2}, **options).train()
    of_a, of_b = (tmp_path / name / "checkpoint-20" for name in "ab")
    shutil.copy(tmp_path / "a" / "checkpoint-10" / "sparse.pt", of_a / "sparse.pt")
    with pytest.raises(dstee.CheckpointError, match=r"sparse\.pt is of step 10, the Trainer goes on after 20"):
        Run(tmp_path / "a").train(str(of_a))
    shutil.copy(of_b / "sparse.pt", of_a / "sparse.pt")
    with pytest.raises(ValueError, match=r"they belong to other masks"):
        Run(tmp_path / "a").train(str(of_a))


def test_damaged_and_odd_files_are_refused_by_name(tmp_path: Path) -> None:
    Run(tmp_path, save_strategy="steps", save_steps=10).train()
    file = tmp_path / "checkpoint-20" / "sparse.pt"
    content = file.read_bytes()
    saved = torch.load(file, weights_only=True)
    saved["sparse"]["layers"]["model.0.weight"]["mask"][0] ^= 1
    torch.save(saved, file)
    for found in (file.read_bytes(), b"", content[:200], content[: len(content) // 2]):
        file.write_bytes(found)
        run = Run(tmp_path)
        with pytest.raises(dstee.CheckpointError, match=r"checkpoint-20.sparse\.pt cannot be used: "):
            run.callback.load(file.parent)
        assert run.sparse.t == 0
    torch.save([1], file)
    with pytest.raises(dstee.CheckpointError, match=r"sparse\.pt cannot be used: "):
        Run(tmp_path).callback.load(file.parent)


def test_the_best_model_comes_back_with_its_masks(tmp_path: Path) -> None:
    calls: list[None] = []

    def worse_each_time(prediction: Any) -> dict[str, float]:
        calls.append(None)
        return {"quality": -float(len(calls))}

    run = Run(
        tmp_path, save_strategy="steps", save_steps=8, eval_strategy="steps", eval_steps=8, load_best_model_at_end=True,
        metric_for_best_model="quality", measured=worse_each_time,
    )  # fmt: skip
    run.train()
    assert run.trainer.state.best_model_checkpoint.endswith("checkpoint-8")
    assert run.sparse.t == 8 and run.sparse.round == 2
    assert_masked(run.sparse)


# --- logs, arguments -----------------------------------------------------------------------------------------------------


class Seen(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def test_numbers_go_into_the_logs(tmp_path: Path) -> None:
    after = Seen()
    run = Run(tmp_path, after, logging_strategy="steps", logging_steps=6)
    run.train()
    for logs in (run.trainer.state.log_history, after.logs):
        training = [entry for entry in logs if "loss" in entry]
        assert [entry["masks/updates"] for entry in training] == [2, 4, 6, 8]
        assert training[-1]["masks/exploration"] == pytest.approx(dstee.metrics.exploration(run.sparse).total)
        assert all("masks/updates" not in entry for entry in logs if "loss" not in entry)


def test_reporters_get_them_after_add_to(tmp_path: Path) -> None:
    reporter = Seen()
    run = Run(tmp_path, reporter, masks=False, logging_strategy="steps", logging_steps=6)
    run.callback.add_to(run.trainer)
    run.train()
    assert [entry["masks/updates"] for entry in reporter.logs if "loss" in entry] == [2, 4, 6, 8]


def test_masks_that_the_callback_makes(tmp_path: Path) -> None:
    """With the Trainer's own optimizer; a dense one writes everywhere."""

    def training(callback: Any, constructor: bool) -> Any:
        args = transformers.TrainingArguments(
            str(tmp_path), max_steps=9, per_device_train_batch_size=SIZE, report_to="none", save_strategy="no", use_cpu=True,
            disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(Network(), args, train_dataset=Rows(24), callbacks=[callback] if constructor else None)
        if not constructor:
            callback.add_to(trainer)
        assert callback.sparse.model is trainer.model
        trainer.train()
        assert callback.sparse.t == 9 and callback.sparse.round == 3
        assert_masked(callback.sparse)
        return callback.sparse.masks()

    first, second = (training(SparseCallback(**settings()), constructor) for constructor in (True, False))
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())


def test_wrong_arguments_and_methods(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"must be the SparseModel that dstee\.sparsify returned, got float"):
        SparseCallback(0.9)
    with pytest.raises(TypeError, match=r"takes a SparseModel, or settings to make one"):
        SparseCallback()
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'sparsty'"):
        SparseCallback(sparsty=0.9)
    run = Run(tmp_path, masks=False)
    run.trainer.add_callback(SparseCallback(sparsity=0.9))  # too late
    with pytest.raises(RuntimeError, match=r"has made no masks yet: pass it to Trainer\(callbacks=\[\.\.\.\]\), or call"):
        run.train()
