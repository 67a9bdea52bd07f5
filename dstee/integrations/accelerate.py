"""accelerate: the sparse state in ``accelerator.save_state`` and ``load_state``.

    sparse = dstee.sparsify(model, 0.9)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)      # or any other
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    register(accelerator, sparse)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, batch))
            sparse.step(optimizer)                        # instead of optimizer.step()
            optimizer.zero_grad()

The prepared optimizer goes into ``sparse.step`` as it is: a step that it skips, because gradients are still added up or its
GradScaler found an overflow, changes nothing and does not count. Logs: ``accelerator.log(scalars(sparse), step=sparse.t)`` with
:func:`dstee.integrations.logging.scalars`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dstee._console import needs
from dstee.sparse_model import SparseModel

try:
    from accelerate import Accelerator
except ModuleNotFoundError as error:
    raise ImportError(needs("dstee.integrations.accelerate", "accelerate", "accelerate")) from error

__all__ = ["register"]


def register(accelerator: Accelerator, sparse: SparseModel) -> None:
    """``accelerator.save_state`` keeps the state of ``sparse`` beside the model's, ``load_state`` restores it, bit for bit.

    It is whole in the file, for any number of ranks and layout. Of weights that are cut among ranks (FSDP2),
    ``accelerator.register_for_checkpointing(sparse)`` would keep the first rank's part alone. A folder that was saved without
    it is refused by accelerate (the numbers of registered objects differ), a damaged one by
    :meth:`dstee.SparseModel.load_state_dict`.

    Raises:
        TypeError: ``sparse`` is no SparseModel.
    """
    if not isinstance(sparse, SparseModel):
        raise TypeError(f"sparse must be the SparseModel that dstee.sparsify returned, got {type(sparse).__name__}")
    accelerator.register_for_checkpointing(_Whole(sparse))


class _Whole:
    """accelerate writes from the first rank alone what all ranks are asked for."""

    def __init__(self, sparse: SparseModel) -> None:
        self.sparse = sparse

    def state_dict(self) -> dict[str, Any]:
        return self.sparse.state_dict(full=True)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.sparse.load_state_dict(state_dict)
