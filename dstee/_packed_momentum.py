"""SGD's momentum of a sparse weight without the places where it is 0."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dstee import backends, ops
from dstee.encoding import flat
from dstee.memory_order import Strides
from dstee.sparse_layer import SparseLayer

__all__ = ["PackedMomentum", "dense_form", "fit_each", "moving_with_masks", "refuse_layer"]


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


@dataclass(eq=False)
class PackedMomentum:
    """The momenta of the active weights: ``values`` [nnz], 1-D, in the order of ``mask_bits``, which are the layer's own.

    Whoever replaces a layer's mask leaves the old one here, by which the momenta are found. Whoever writes to a mask takes them
    out before: ``version`` tells where that was forgotten.
    """

    values: Tensor
    mask_bits: Tensor
    shape: torch.Size
    strides: Strides
    version: int | None

    @classmethod
    def of(cls, layer: SparseLayer, values: Tensor) -> PackedMomentum:
        """``values`` in the order of the layer's mask."""
        return cls(values, layer.mask_bits, layer.shape, layer.strides, _version(layer.mask_bits))

    @classmethod
    def pack(cls, layer: SparseLayer, momentum: Tensor) -> PackedMomentum:
        """``momentum`` with shape, dtype and strides of the weight; what it holds outside the mask is left out."""
        return cls.of(layer, flat(momentum)[ops.unpack_mask(layer.mask_bits, (layer.numel,))])

    def unpack(self) -> Tensor:
        """With shape and strides of the weight as it was then; 0 outside the mask.

        Raises:
            RuntimeError: somebody has written to the mask since.
        """
        if self.version is not None and self.version != _version(self.mask_bits):
            raise RuntimeError(
                "a mask was written in place while its momenta were packed in its order, so they cannot be found any more: "
                "call optimizer.momentum_buffer(layer) before, or replace the mask (sparse.load_state_dict, sparse.apply_masks)"
            )
        n = self.shape.numel()
        found = self.values.new_zeros(n)
        found[ops.unpack_mask(self.mask_bits, (n,))] = self.values
        return found.as_strided(self.shape, self.strides)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"version": None}  # a copy of the mask counts anew


@contextlib.contextmanager
def moving_with_masks(state: Mapping[Tensor, Any], layers: Iterable[SparseLayer]) -> Iterator[None]:
    """Inside it one call of an op writes the masks of ``layers`` and, with them, the packed momenta in the optimizer's
    ``state``: an exception before or after the call, KeyboardInterrupt too, finds them together."""
    kept = [(state.get(layer.param) or {}).get("momentum_buffer") for layer in layers]
    packed = [m for m in kept if isinstance(m, PackedMomentum)]
    for m in packed:
        m.version = None
    try:
        yield
    finally:
        for m in packed:
            m.version = _version(m.mask_bits)


def fit_each(momenta: Sequence[Any], layers: Sequence[SparseLayer]) -> list[bool]:
    """Whether each is a packed momentum that can be used with its layer as that is now."""
    return [
        type(m) is PackedMomentum
        and m.mask_bits is layer.mask_bits
        and m.strides == layer.strides
        and m.values.dtype is layer.dtype
        and m.values.device == layer.mask_bits.device
        and (m.version is None or m.version == (0 if m.mask_bits.is_inference() else m.mask_bits._version))
        for m, layer in zip(momenta, layers, strict=True)
    ]


def dense_form(value: Any) -> Any:
    """An entry of an optimizer's state as ``torch.optim.SGD`` has it."""
    return value.unpack() if isinstance(value, PackedMomentum) else value


def refuse_layer(layer: SparseLayer) -> None:
    """Raises ValueError where the weight is cut among ranks, RuntimeError where the kernels of its device cannot step it."""
    if layer.sharding is not None:
        raise ValueError(f"packed_momentum=True is for whole weights, but {layer.name} is cut among ranks: make it False")
    device = layer.mask_bits.device
    if device.type != "cpu":
        why = backends.resolve("masked_sgd_", device).why_not_option("masked_sgd_", device, "packed_momenta")
        if why is not None:
            raise RuntimeError(f"packed_momentum=True cannot step {layer.name}: {why}; make it False")
