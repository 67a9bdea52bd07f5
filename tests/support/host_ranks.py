"""A training of two ranks under a host, whole and resumed: ``torchrun host_ranks.py CASE FOLDER`` writes what each came to."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.digits_batches import batches, loss, mlp
from support.host_training import Network, settings, sparse_sgd
from torch import Tensor

import dstee
from dstee.experiments.checkpoint import digest

Result = tuple[str, str, int, int]


def rows() -> Any:
    x, y = zip(*batches(16), strict=True)
    return torch.utils.data.TensorDataset(torch.cat(x), torch.cat(y))


def result(sparse: dstee.SparseModel) -> Result:
    """Digests of masks and weights as a whole, steps, updates; raises where the ranks differ."""
    dstee.distributed.check(sparse)
    whole = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in sparse.model.parameters()]
    masks = [getattr(mask, "full_tensor", lambda mask=mask: mask)() for mask in sparse.masks().values()]
    assert all(not bool(w[~mask].any()) for w, mask in zip(whole[::2], masks, strict=True))  # each weight has a bias
    return digest(masks), digest(whole), sparse.t, sparse.round


def lightning(folder: Path, cut: bool, **more: Any) -> tuple[Result, Result]:
    """``cut``: FSDP2, with the module's own SparseModel and SparseSGD; else DDP, and AdamW in a module without one."""
    pl = importlib.import_module("lightning.pytorch")
    callback = importlib.import_module("dstee.integrations.lightning").SparseCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.sparse = mlp(), None

        def configure_model(self) -> None:
            if cut and self.sparse is None:
                shard = torch.distributed.fsdp.fully_shard
                for module in [*self.model[::2], self.model]:
                    shard(module, mesh=self.device_mesh["data_parallel"])
                self.sparse = dstee.sparsify(self, **settings(**more))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return loss(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sparse_sgd(self, self.sparse) if cut else torch.optim.AdamW(self.parameters(), lr=1e-2)

    def run(epochs: int, resume: str | None = None, save: str | None = None) -> Result:
        masks = callback() if cut else callback(**settings(**more))
        sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1, "process_group_backend": "gloo"}
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=2, callbacks=[masks], logger=False, enable_checkpointing=False,
            strategy=pl.strategies.ModelParallelStrategy(**sizes) if cut else "ddp", enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(Module(), torch.utils.data.DataLoader(rows(), 32), ckpt_path=resume)
        if save:
            trainer.save_checkpoint(save)
        return result(masks.sparse)

    whole, file = run(3), str(folder / "middle.ckpt")
    run(1, save=file)
    return whole, run(3, resume=file)


def trainer(folder: Path) -> tuple[Result, Result]:
    transformers = importlib.import_module("transformers")
    callback = importlib.import_module("dstee.integrations.transformers").SparseCallback

    def run(resume: str | None = None) -> Result:
        masks = callback(**settings(method="rigl"))
        args = transformers.TrainingArguments(
            str(folder), num_train_epochs=2, per_device_train_batch_size=32, save_strategy="steps", save_steps=10,
            report_to="none", use_cpu=True, disable_tqdm=True, ddp_backend="gloo", learning_rate=1e-2,
        )  # fmt: skip

        def collate(found: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
            x, y = zip(*found, strict=True)
            return {"x": torch.stack(x), "labels": torch.stack(y)}

        transformers.Trainer(Network(), args, train_dataset=rows(), data_collator=collate, callbacks=[masks]).train(
            resume_from_checkpoint=resume
        )
        return result(masks.sparse)

    return run(), run(str(folder / "checkpoint-20"))


CASES: dict[str, Callable[[Path], tuple[Result, Result]]] = {
    "lightning-ddp": lambda folder: lightning(folder, cut=False, method="rigl"),
    "lightning-fsdp2": lambda folder: lightning(folder, cut=True),
    "trainer-ddp": trainer,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the hosts' own
    torch.set_num_threads(1)
    rank, into = os.environ["RANK"], Path(sys.argv[2])
    text = repr(CASES[sys.argv[1]](into))
    (into / f"rank-{rank}.txt").write_text(text)
