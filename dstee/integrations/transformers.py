"""transformers: a callback that updates masks after the Trainer's steps and keeps them with its checkpoints.

    trainer = Trainer(model, args, train_dataset=data, callbacks=[SparseCallback(sparsity=0.9, method="rigl")])
    trainer.train(resume_from_checkpoint=...)

Any optimizer will do, the Trainer's own, too. For :class:`dstee.SparseSGD` the SparseModel comes first:
``optimizers=(dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9), None), callbacks=[SparseCallback(sparse)]``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dstee._console import needs
from dstee._files import CheckpointError, open_regular, write_atomic
from dstee.integrations._given import check_given
from dstee.integrations._host_steps import HostSteps
from dstee.integrations.logging import scalars
from dstee.sparse_model import SparseModel
from dstee.sparsification import sparsify

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    raise ImportError(needs("dstee.integrations.transformers", "transformers", "transformers")) from error

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["FILE", "SparseCallback"]

FILE = "sparse.pt"
"""Beside the weights in a ``checkpoint-N`` folder: ``{"global_step": N, "sparse": SparseModel.state_dict(full=True)}``, by
``torch.save``; loads with ``weights_only=True``."""


class SparseCallback(TrainerCallback):
    """Masks, counters and schedule of a model that the Trainer trains.

    - Every step that the optimizer really makes counts, and a mask update that is due comes with it, by the gradients that were
      stepped: added up over ``gradient_accumulation_steps``, unscaled, clipped. Steps that a GradScaler skips do not count.
      Updates that replace a step (RigL's) replace it.
    - Each ``checkpoint-N`` folder gets the sparse state (:data:`FILE`), and ``train(resume_from_checkpoint=...)`` restores it,
      bit for bit. A folder without it is refused. So is one outside ``output_dir``, of which the Trainer does not tell its
      callbacks: call :meth:`load` with it before ``train``.
    - ``load_best_model_at_end`` brings the masks of the best weights back with them.
    - The logs of the training get :func:`dstee.integrations.logging.scalars` added: ``trainer.state.log_history``, the progress
      bar, and, after :meth:`add_to`, what ``report_to`` names (TensorBoard, W&B, MLflow).

    Args:
        sparse: what :func:`dstee.sparsify` made of the Trainer's model; None for one that is made, with ``settings``, when the
            Trainer is.
        log: add the numbers to the logs.
        settings: of :func:`dstee.sparsify`, for the whole model.

    Raises:
        TypeError, ValueError: as :func:`dstee.sparsify`; neither a SparseModel nor settings; weights of other masks.
        RuntimeError: as :meth:`dstee.SparseModel.update`.
        CheckpointError: the checkpoint to resume from has no sparse state, or not its own.
    """

    sparse: SparseModel | None
    """What is trained; None before the Trainer is made."""

    def __init__(self, sparse: SparseModel | None = None, *, log: bool = True, **settings: Any) -> None:
        check_given(sparse, settings)
        if sparse is None and not settings:
            raise TypeError("SparseCallback takes a SparseModel, or settings to make one: SparseCallback(sparsity=0.9)")
        self.sparse = sparse
        self._settings = settings
        self._log = log
        self._steps: HostSteps | None = None
        self._loaded: int | None = None

    def add_to(self, trainer: Trainer) -> None:
        """As ``Trainer(callbacks=[self])``, but before the callbacks that report: so they get its numbers, too."""
        trainer.callback_handler.callbacks.insert(0, self)
        self._make(trainer.model)

    def load(self, folder: str | Path) -> None:
        """The sparse state of a ``checkpoint-N`` folder, for a training that resumes from it or for its weights alone.

        Raises:
            CheckpointError: there is none, or it is damaged or of another model; the text names the file.
        """
        path = Path(folder) / FILE
        try:
            with open(path, "rb", opener=open_regular) as file:
                saved = torch.load(file, map_location="cpu", weights_only=True)
            step = saved["global_step"]
            self._made().load_state_dict(saved["sparse"])
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} is missing: the checkpoint was saved without SparseCallback, or the process died before it was whole. "
                "Resume from another one; if it lies outside output_dir, call callback.load(folder) before trainer.train"
            ) from None
        except Exception as error:  # torch.load raises a dozen kinds for damage
            raise CheckpointError(f"{path} cannot be used: {error}") from error
        self._loaded = step

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self._make(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **kwargs: Any
    ) -> None:
        sparse = self._made()
        if state.global_step and self._loaded != state.global_step:
            self.load(_folder(args, state))
            if self._loaded != state.global_step:
                raise CheckpointError(
                    f"{_folder(args, state) / FILE} is of step {self._loaded}, the Trainer goes on after {state.global_step}"
                )
        self._loaded = None
        sparse.check_weights()  # before an optimizer that knows nothing of masks writes everywhere
        self._leave()
        self._steps = HostSteps(sparse)
        self._steps.follow([optimizer])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **kwargs: Any
    ) -> None:
        assert self._steps is not None
        self._steps.training = True
        self._steps.before(optimizer, getattr(optimizer, "scaler", None))

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        assert self._steps is not None
        self._steps.training = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        saved = {"global_step": state.global_step, "sparse": self._made().state_dict(full=True)}  # on all ranks
        if args.should_save:
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            write_atomic(_folder(args, state) / FILE, [buffer.getbuffer()])

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if self._log and logs is not None and "loss" in logs:  # not those of an evaluation
            numbers = scalars(self._made())
            logs.update(numbers)
            state.log_history[-1].update(numbers)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._leave()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.load(state.best_model_checkpoint)
            self._loaded = None

    def _make(self, model: nn.Module) -> None:
        if self.sparse is None:
            self.sparse = sparsify(model, **self._settings)

    def _made(self) -> SparseModel:
        if self.sparse is None:
            raise RuntimeError(
                "this SparseCallback has made no masks yet: pass it to Trainer(callbacks=[...]), or call "
                "callback.add_to(trainer)"
            )
        return self.sparse

    def _leave(self) -> None:
        if self._steps is not None:
            self._steps.leave()
            self._steps = None


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
