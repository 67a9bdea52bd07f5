"""An unmodified LightningModule, trained sparse by a callback: ``python examples/lightning_module.py``.

``--checkpoint FILE`` goes on from a checkpoint that was written into ``--out``, masks and all. Needs ``pip install lightning``.
"""

from __future__ import annotations

import argparse

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import dstee
from dstee.integrations.lightning import SparseCallback


class Classifier(lightning.LightningModule):
    """Knows nothing of masks."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def digits(rows: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Ten patterns of 8 x 8 pixels under noise, and which of them each row is."""
    patterns = torch.rand(10, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (rows,), generator=generator)
    return DataLoader(TensorDataset(patterns[labels] + 0.5 * torch.randn(rows, 64, generator=generator), labels), 96)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sparse training under Lightning.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--out", default="runs/lightning", help="a folder for checkpoints and logs")
    parser.add_argument("--checkpoint", help="a file to go on from")
    args = parser.parse_args()

    torch.manual_seed(0)
    module = Classifier()
    masks = SparseCallback(sparsity=args.sparsity, method="rigl", schedule=dstee.UpdateSchedule(every=10, stop=90))
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        callbacks=[masks, ModelCheckpoint(filename="{epoch}", save_top_k=-1)],
        default_root_dir=args.out,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        enable_progress_bar=False,
    )
    trainer.fit(module, digits(1920, seed=1), ckpt_path=args.checkpoint)
    trainer.test(module, digits(480, seed=2))
    print(masks.sparse.summary())


if __name__ == "__main__":
    main()
