"""The Trainer of transformers, sparse by a callback: ``python examples/trainer_callback.py``.

A small GPT-2 learns to count on. Checkpoints in ``--out`` hold the masks beside the weights, and ``--resume`` goes on from the
last of them. Needs ``pip install transformers accelerate``.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import dstee
from dstee.integrations.transformers import SparseCallback


class Counting(Dataset[dict[str, Tensor]]):
    """Rows of 16 numbers modulo 32: each starts somewhere and goes on in steps of 1 to 4."""

    def __len__(self) -> int:
        return 1024

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = (i + (i % 4 + 1) * torch.arange(16)) % 32
        return {"input_ids": row, "labels": row}


def main() -> None:
    parser = argparse.ArgumentParser(description="Sparse training under the Trainer of transformers.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--out", default="runs/trainer", help="a folder for checkpoints")
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint in --out")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=16, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    schedule = dstee.UpdateSchedule(every=10, stop=150)
    sparse = dstee.sparsify(model, args.sparsity, method="rigl", schedule=schedule)
    settings = TrainingArguments(
        args.out,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        save_strategy="epoch",
        logging_steps=32,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, settings, train_dataset=Counting(), callbacks=[SparseCallback(sparse)])
    trainer.train(resume_from_checkpoint=args.resume or None)
    print(sparse.summary())


if __name__ == "__main__":
    main()
