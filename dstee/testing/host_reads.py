"""Counts how often code reads values from tensors, for which it would wait on a GPU; on any device."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["HostReads"]

_aten = torch.ops.aten
_READS = {
    _aten._local_scalar_dense, _aten.equal, _aten.nonzero, _aten.nonzero_numpy, _aten.masked_select, _aten._unique2,
    _aten.unique_dim, _aten.unique_consecutive,
}  # fmt: skip
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_METHODS = ("tolist", "numpy", "cpu")
_SKIPPED = tuple(os.path.dirname(module.__file__ or "") for module in (torch, sys.modules[__name__]))


class HostReads(TorchDispatchMode):
    """Inside, ``places`` counts ``item``, ``int``, ``bool``, ``tolist``, ``cpu``, ``nonzero``, indexing by masks and the like
    by the lines ("file:line") that asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self._plain: dict[str, Callable[..., Any]] = {}

    @property
    def number(self) -> int:
        return self.places.total()

    def __enter__(self) -> HostReads:
        for name in _METHODS:
            self._plain[name] = getattr(Tensor, name)
            setattr(Tensor, name, self._counted(self._plain[name]))
        super().__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        super().__exit__(kind, error, traceback)
        for name, plain in self._plain.items():
            setattr(Tensor, name, plain)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet in _READS or (packet in _INDEXED and any(i is not None and i.dtype is torch.bool for i in args[1])):
            self._note()
        return func(*args, **(kwargs or {}))

    def _counted(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def read(t: Tensor, *args: Any, **kwargs: Any) -> Any:
            if t.dim():  # of one number it is an item()
                self._note()
            return plain(t, *args, **kwargs)

        return read

    def _note(self) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_SKIPPED):
            frame = frame.f_back
        self.places[f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"] += 1
