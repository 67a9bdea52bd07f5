"""One sparse layer: a parameter of the model, its mask and its counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dstee import _checks, ops
from dstee.encoding import flat
from dstee.parameter_names import ParameterPlace
from dstee.selection import Candidate
from dstee.weight_kinds import is_lazy

__all__ = [
    "LaterCounts",
    "SparseLayer",
    "Strides",
    "check_parameter",
    "like",
    "make_layer",
    "pack_like",
    "reorder",
    "reorder_bits",
    "row_major",
    "unpack_like",
]

Strides = tuple[int, ...]


def check_parameter(name: str, p: Tensor) -> None:
    """A sparse weight is a plain floating-point tensor that fills its memory exactly once.

    Raises:
        TypeError, ValueError: naming the parameter and what to do.
    """
    if is_lazy(p):
        raise ValueError(f"{name} is not initialised yet: run one batch through the model first")
    if type(p) is not nn.Parameter:
        raise TypeError(
            f"{name} is a {type(p).__name__}, expected a plain torch.nn.Parameter: sharded weights are not supported"
        )
    if p.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: give it memory (model.to_empty) first")
    if p.dtype not in _checks.PARAM_DTYPES:
        raise TypeError(
            f"{name} has dtype {p.dtype}, expected float32, bfloat16 or float16 (the ops compute in float32): use model.float()"
        )
    if not _checks.is_dense(p):
        raise ValueError(
            f"{name} {list(p.shape)} with strides {p.stride()} is a view with gaps or overlaps: pass a whole tensor"
        )


def row_major(shape: torch.Size) -> tuple[int, ...]:
    """Strides of a contiguous tensor of this shape."""
    return torch.empty(shape, device="meta").stride()


def like(t: Tensor, p: Tensor, dtypes: tuple[torch.dtype, ...] = ()) -> Tensor:
    """``t`` with the device, memory order and dtype of ``p`` (or one of ``dtypes``): itself if it has them, else a copy."""
    if t.requires_grad:
        t = t.detach()
    if t.layout is not torch.strided:
        t = t.to_dense()
    if t.is_neg():
        t = t.resolve_neg()
    if t.dtype in (p.dtype, *dtypes) and t.device == p.device and _checks.layout(t) == _checks.layout(p):
        return t
    return torch.empty_like(p, dtype=t.dtype if t.dtype in dtypes else p.dtype, requires_grad=False).copy_(t)


def is_binary(mask: Tensor) -> bool:
    """Whether a mask of any dtype holds 0 and 1 alone."""
    return mask.dtype is torch.bool or bool(((mask == 0) | (mask == 1)).all())


def pack_like(mask: Tensor, p: Tensor) -> Tensor:
    """A mask of any dtype (not 0 is active) and the shape of ``p`` as bits in the memory order of ``p``, on its device."""
    if mask.dtype is not torch.bool:
        mask = mask != 0
    if mask.device != p.device or _checks.layout(mask) != _checks.layout(p):
        mask = torch.empty_like(p, dtype=torch.bool, requires_grad=False).copy_(mask)
    return ops.pack_mask(mask)


def unpack_like(bits: Tensor, p: Tensor) -> Tensor:
    """Inverse of :func:`pack_like`: bool, shape and strides of ``p``."""
    return ops.unpack_mask(bits, (p.numel(),)).as_strided(p.shape, p.stride())


def reorder(values: Tensor, shape: Sequence[int], old: Strides, new: Strides) -> Tensor:
    """1-D ``values`` in the memory order of ``old`` strides, put into that of ``new``."""
    if old == new:
        return values
    target = values.new_empty_strided(tuple(shape), new)
    return flat(target.copy_(values.as_strided(tuple(shape), old)))


def reorder_bits(bits: Tensor, shape: Sequence[int], old: Strides, new: Strides) -> Tensor:
    """As :func:`reorder`, for a packed mask."""
    if old == new:
        return bits
    return ops.pack_mask(reorder(ops.unpack_mask(bits, (torch.Size(shape).numel(),)), shape, old, new))


class LaterCounts:
    """Numbers of active weights, one for each layer, that stay on their device until somebody asks: then all come at once."""

    def __init__(self, counts: Tensor) -> None:
        self._counts: Tensor | list[int] = counts

    def __getitem__(self, i: int) -> int:
        if isinstance(self._counts, Tensor):
            self._counts = self._counts.tolist()
        return self._counts[i]


@dataclass(eq=False)
class SparseLayer:
    """A weight of the model, found by name each time it is used, with its mask and counters in the weight's memory order.

    ``count``: active weights, or where they will be found; ``nnz`` reads it. ``mask_bits``: uint8 [ceil(n/8)].
    ``counts``: int16 [n] in lazy form, None without counters. ``previous_bits``: the mask before the last update, None before
    the first. ``state``: what the method keeps for each weight (:attr:`dstee.methods.Method.keeps`), float32.
    """

    name: str
    place: ParameterPlace
    count: int | tuple[LaterCounts, int]
    mask_bits: Tensor
    counts: Tensor | None
    shape: torch.Size
    strides: Strides
    dtype: torch.dtype
    previous_bits: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nnz(self) -> int:
        """Active weights. After an update that moved budgets the first look costs a host sync, one for all layers."""
        if not isinstance(self.count, int):
            later, i = self.count
            self.count = later[i]
        return self.count

    @nnz.setter
    def nnz(self, count: int | tuple[LaterCounts, int]) -> None:
        self.count = count

    @property
    def numel(self) -> int:
        return self.shape.numel()

    @property
    def param(self) -> nn.Parameter:
        """The parameter that the model holds under this name now; wrappers and users replace it.

        Raises:
            RuntimeError: there is none any more.
        """
        p = self.place.get()
        if p is None:
            raise RuntimeError(
                f"{self.name} is no parameter of its module any more: make the model sparse after changing it, "
                f"or leave the layer alone from now on, sparse.remove({self.name!r})"
            )
        return p

    @property
    def module(self) -> nn.Module:
        """The module that holds the parameter."""
        return self.place.module

    def follow(self) -> nn.Parameter:
        """The parameter, after mask and counters have gone where it went: another device or memory format."""
        p = self.param
        if (
            p.stride() != self.strides
            or p.shape != self.shape
            or p.device != self.mask_bits.device
            or p.dtype is not self.dtype
            or type(p) is not nn.Parameter
        ):
            self._move(p)
        return p

    def _move(self, p: nn.Parameter) -> None:
        check_parameter(self.name, p)
        if p.shape != self.shape:
            raise RuntimeError(
                f"{self.name} has shape {list(p.shape)}, it was {list(self.shape)} when it was made sparse: "
                f"call sparse.remove({self.name!r}), and make it sparse anew"
            )
        order = self.shape, self.strides, p.stride()
        previous, counts = self.previous_bits, self.counts
        self.__dict__.update(  # one call: no signal comes between its parts
            mask_bits=reorder_bits(self.mask_bits, *order).to(p.device),
            previous_bits=None if previous is None else reorder_bits(previous, *order).to(p.device),
            counts=None if counts is None else reorder(counts, *order).to(p.device),
            strides=p.stride(),
            dtype=p.dtype,
        )

    def fit(self, t: Tensor) -> Tensor:
        """A gradient or momentum with the dtype, device and memory order of the weight: itself if it has them, else a copy."""
        if t.is_neg():
            t = t.resolve_neg()  # a kernel reads the memory, not the sign that the tensor means
        if (
            t.layout is torch.strided
            and t.stride() == self.strides
            and t.dtype is self.dtype
            and t.device == self.mask_bits.device
        ):
            return t
        return like(t, self.param)

    def fitted_state(self, key: str) -> Tensor:
        """The method's tensor ``key``, laid out like the weight: 0 at first."""
        p = self.param
        kept = self.state.get(key)
        if kept is None:
            kept = torch.zeros_like(p, dtype=torch.float32, requires_grad=False)
        self.state[key] = fitting = self.fit_float(kept)
        return fitting

    def fit_float(self, t: Tensor) -> Tensor:
        """A float32 tensor of the weight's shape on its device and in its memory order: itself if it is, else a copy."""
        return like(t, self.param, (torch.float32,))

    def bools(self, bits: Tensor) -> Tensor:
        """A packed mask as a bool tensor with the shape and strides of the weight; :meth:`follow` first."""
        return ops.unpack_mask(bits, (self.numel,)).as_strided(self.shape, self.strides)

    def grown(self) -> Tensor:
        """Weights that the last update made active and that were not before it, as :meth:`bools`; none before the first."""
        return self.bools(self.grown_bits())

    def grown_bits(self) -> Tensor:
        """:meth:`grown`, packed."""
        return self.mask_bits & ~(self.mask_bits if self.previous_bits is None else self.previous_bits)

    def active(self) -> Tensor:
        """The mask: bool, shape and strides of the weight."""
        self.follow()
        return self.bools(self.mask_bits)

    @torch.no_grad()
    def clear_outside(self) -> None:
        """Zeroes the weights outside the mask."""
        self.follow().masked_fill_(self.inactive(), 0)

    def inactive(self) -> Tensor:
        """The weights outside the mask: bool, shape and strides of the weight."""
        return self.active().logical_not_()


def make_layer(root: nn.Module, c: Candidate, mask: Tensor, nnz: int, counted: bool) -> SparseLayer:
    """A layer of model ``root`` with ``mask`` (shape of the weight, any memory order, ``nnz`` active); the weights are not
    touched."""
    p = c.param
    # The initial mask is the first round: N = M, whose stored form is 0 everywhere.
    counts = torch.zeros(p.numel(), dtype=torch.int16, device=p.device) if counted else None
    return SparseLayer(c.name, ParameterPlace(root, c.name), nnz, pack_like(mask, p), counts, p.shape, p.stride(), p.dtype)
