"""What the callbacks are made with: a SparseModel, or the settings to make one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from dstee.sparse_model import SparseModel
from dstee.sparsification import sparsify


def check_given(sparse: object, settings: Mapping[str, Any]) -> None:
    """Raises TypeError where ``sparse`` is none, both are given, or ``settings`` are none of :func:`dstee.sparsify`."""
    if sparse is not None and not isinstance(sparse, SparseModel):
        raise TypeError(
            f"sparse must be the SparseModel that dstee.sparsify returned, got {type(sparse).__name__}; settings of "
            "dstee.sparsify go by name: SparseCallback(sparsity=0.9)"
        )
    if sparse is not None and settings:
        raise TypeError(f"a SparseModel is given and {', '.join(settings)}, too: leave one out")
    try:
        inspect.signature(sparsify).bind(nn.Module(), **settings)
    except TypeError as error:
        raise TypeError(f"these settings are none of dstee.sparsify: {error}") from None
