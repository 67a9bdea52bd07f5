"""Lightning: a callback that updates masks after the Trainer's steps and keeps them with its checkpoints.

    trainer = lightning.Trainer(callbacks=[SparseCallback(sparsity=0.9, method="rigl")])
    trainer.fit(module, ckpt_path=...)

The module needs no change; any optimizer will do. For :class:`dstee.SparseSGD` it makes its SparseModel itself, as
``self.sparse``, and the callback finds it there.
"""

from __future__ import annotations

from typing import Any

from dstee._console import needs
from dstee.integrations._given import check_given
from dstee.integrations._host_steps import HostSteps
from dstee.integrations.logging import scalars
from dstee.sparse_model import SparseModel
from dstee.sparsification import sparsify

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ModuleNotFoundError:
        raise ImportError(needs("dstee.integrations.lightning", "lightning", "lightning")) from error

__all__ = ["SparseCallback"]

_MANUAL = (
    "the module steps its optimizer itself (automatic_optimization is False): call self.sparse.step(self.optimizers()) in "
    "training_step instead of the optimizer's step(), with the SparseModel as self.sparse"
)


class SparseCallback(Callback):
    """Masks, counters and schedule of a module that the Trainer trains.

    - Every step that the optimizer really makes counts, and a mask update that is due comes with it, by the gradients that were
      stepped: added up over ``accumulate_grad_batches``, unscaled, clipped. Steps that a GradScaler skips do not count. Updates
      that replace a step (RigL's) replace it, and come before gradients are clipped.
    - A module that calls ``sparse.step(optimizer, closure=...)`` in its own ``optimizer_step`` may do so; under manual
      optimization it must call ``sparse.step(optimizer)``.
    - Checkpoints hold the sparse state beside the weights; ``trainer.fit(ckpt_path=...)`` restores it, bit for bit.

    Args:
        sparse: what :func:`dstee.sparsify` made of the module; None for the module's attribute ``sparse``, which it has when
            its optimizers are configured at the latest, or, with ``settings``, for one that is made when ``fit`` begins.
        log: send :func:`dstee.integrations.logging.scalars` to the Trainer's loggers every ``log_every_n_steps``.
        settings: of :func:`dstee.sparsify`, for the whole module.

    Raises:
        TypeError, ValueError: as :func:`dstee.sparsify`; the module has no SparseModel; the checkpoint to resume from has no
            sparse state.
        RuntimeError: as :meth:`dstee.SparseModel.update`; a manual step that was not ``sparse.step``.
    """

    sparse: SparseModel | None
    """What is trained; None before it is known."""

    def __init__(self, sparse: SparseModel | None = None, *, log: bool = True, **settings: Any) -> None:
        check_given(sparse, settings)
        self.sparse = sparse
        self._given, self._settings = sparse, settings
        self._log = log
        self._steps: HostSteps | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._settings and (self.sparse is None or self.sparse.model is not pl_module):
            self.sparse = sparsify(pl_module, **self._settings)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sparse = self._found(pl_module)
        sparse.check_weights()  # before an optimizer that knows nothing of masks writes everywhere
        self._steps = HostSteps(sparse, "" if pl_module.automatic_optimization else _MANUAL)
        self._steps.follow(trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self._steps is not None
        self._steps.training = True
        self._t = self._steps.sparse.t

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert self._steps is not None
        self._steps.before(optimizer, getattr(trainer.precision_plugin, "scaler", None))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._steps is not None
        self._steps.training = False
        stepped = self._steps.sparse.t > self._t
        if self._log and stepped and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_dict(scalars(self._steps.sparse), on_step=True, on_epoch=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = self._found(pl_module).state_dict(full=True)  # on all ranks
        checkpoint.setdefault("callbacks", {})[self.state_key] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if trainer.state.fn != "fit" and (state is None or not self._has(pl_module)):
            return  # weights alone are needed
        if state is None:
            raise ValueError(
                "the checkpoint has no sparse state, so it was saved without this callback, and the training cannot go on with "
                "its masks. To start from its weights, load them into the module and leave ckpt_path out"
            )
        self._found(pl_module).load_state_dict(state)

    def _has(self, pl_module: LightningModule) -> bool:
        if self._given is None and not self._settings:
            self.sparse = getattr(pl_module, "sparse", None)
        return isinstance(self.sparse, SparseModel)

    def _found(self, pl_module: LightningModule) -> SparseModel:
        if not self._has(pl_module):
            raise TypeError(
                f"SparseCallback() takes {type(pl_module).__name__}.sparse, which dstee.sparsify must have made by now, got "
                f"{type(self.sparse).__name__}; SparseCallback(sparsity=0.9) makes the whole module sparse by itself"
            )
        assert self.sparse is not None
        return self.sparse

    def _leave(self) -> None:
        if self._steps is not None:
            self._steps.leave()
            self._steps = None
