"""One sparse layer: a parameter of the model, its mask and its counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dstee import _checks, ops
from dstee.distributed.ranks import Ranks
from dstee.distributed.sharding import Sharding, sharding_of
from dstee.distributed.where import Where, as_dtensor, local_part, whole
from dstee.encoding import flat, zero_where
from dstee.memory_order import Strides, like, pack_like, reorder, reorder_bits
from dstee.parameter_names import ParameterPlace, get_each
from dstee.selection import Candidate
from dstee.weight_kinds import is_lazy

__all__ = [
    "LaterCounts",
    "SparseLayer",
    "check_cut",
    "check_parameter",
    "fit_each",
    "fit_params",
    "follow_each",
    "make_layer",
    "params_of",
]


def check_parameter(name: str, p: Tensor) -> None:
    """A sparse weight is a plain floating-point tensor that fills its memory exactly once.

    Raises:
        TypeError, ValueError: naming the parameter and what to do.
    """
    if type(p) is not nn.Parameter and not is_lazy(p):
        raise TypeError(f"{name} is a {type(p).__name__}, expected a plain torch.nn.Parameter")
    check_cut(name, p)


def check_cut(name: str, p: Tensor) -> Sharding | None:
    """As :func:`check_parameter`, or a DTensor whose shards fill their memory. Returns how it is cut, None where it is not."""
    if is_lazy(p):
        raise ValueError(f"{name} is not initialised yet: run one batch through the model first")
    if type(p) is not nn.Parameter and as_dtensor(p) is None:
        raise TypeError(f"{name} is a {type(p).__name__}, expected a torch.nn.Parameter, plain or a DTensor")
    if p.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: give it memory (model.to_empty) first")
    if p.dtype not in _checks.PARAM_DTYPES:
        raise TypeError(
            f"{name} has dtype {p.dtype}, expected float32, bfloat16 or float16 (the ops compute in float32): use model.float()"
        )
    try:
        sharding = sharding_of(p)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    if sharding is None and not _checks.is_dense(p):
        raise ValueError(
            f"{name} {list(p.shape)} with strides {p.stride()} is a view with gaps or overlaps: pass a whole tensor"
        )
    return sharding


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

    Of a weight that is cut among ranks (``sharding``), ``shape``, ``numel`` and ``nnz`` are those of the whole; all else,
    ``local`` and ``grad`` too, is this rank's part.
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
    sharding: Sharding | None = None

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

    @property
    def local(self) -> Tensor:
        """What this rank holds of the weight, the memory itself: the parameter, or the shard of a DTensor."""
        return local_part(self.param)

    @property
    def where(self) -> Where:
        """Where this rank's part lies in the weight."""
        return whole(self.numel) if self.sharding is None else self.sharding.where

    @property
    def holders(self) -> Ranks | None:
        """The ranks whose parts make up the weight; None where it is whole."""
        return None if self.sharding is None else self.sharding.holders

    @property
    def everyone(self) -> Ranks | None:
        """All ranks that hold some of the weight, replicas too; None for a plain parameter."""
        return None if self.sharding is None else self.sharding.everyone

    @property
    def local_shape(self) -> torch.Size:
        """Of this rank's part."""
        return self.shape if self.sharding is None else self.sharding.local_shape

    @property
    def grad(self) -> Tensor | None:
        """The gradient of what this rank holds, as :meth:`fit` lays it out; None where there is none."""
        g = self.param.grad
        if g is None:
            return None
        return self.fit(g if self.sharding is None else self.sharding.part_of_gradient(self.name, g))

    def fit_grad(self) -> None:
        """Has the parameter's gradient laid out like the weight, so that what is written to :attr:`grad` reaches it."""
        fitting = self.grad
        if fitting is not None and (self.param.grad is None or local_part(self.param.grad) is not fitting):
            self.param.grad = self.placed(fitting)

    def lies_as(self, p: Tensor) -> bool:
        """Whether this rank holds the same part of ``p``, which has the weight's shape, as of the weight."""
        d = as_dtensor(p)
        if d is None or self.sharding is None:
            return self.sharding is None and local_part(p).shape == self.shape
        return self.sharding.fits(d)

    def placed(self, values: Tensor) -> Tensor:
        """``values`` for what this rank holds, as something like the parameter: a DTensor where that is one."""
        return values if self.sharding is None else self.sharding.place(values)

    def follow(self) -> nn.Parameter:
        """The parameter, after mask and counters have gone where it went: another device or memory format, or shards."""
        p = self.param
        here: Tensor = p
        if type(p) is not nn.Parameter or self.sharding is not None:
            here = local_part(p)
            if here is p or self.sharding is None or not self.sharding.fits(p):  # type: ignore[arg-type]
                self._move(p)
                return p
        if (
            here.stride() != self.strides
            or p.shape != self.shape
            or here.device != self.mask_bits.device
            or here.dtype is not self.dtype
        ):
            self._move(p)
        return p

    def _move(self, p: nn.Parameter) -> None:
        sharding = check_cut(self.name, p)
        if p.shape != self.shape:
            raise RuntimeError(
                f"{self.name} has shape {list(p.shape)}, it was {list(self.shape)} when it was made sparse: "
                f"call sparse.remove({self.name!r}), and make it sparse anew"
            )
        if self.sharding is not None and sharding != self.sharding:
            now = "is whole now" if sharding is None else f"is placed {sharding.placements} on {sharding.mesh} now"
            raise RuntimeError(
                f"{self.name} {now}, it was placed {self.sharding.placements} on {self.sharding.mesh}: save the sparse state "
                "with torch.distributed.checkpoint, and load it where the model was made sparse anew"
            )
        here = local_part(p)
        if self.sharding is None and sharding is not None:
            self._cut(sharding, here)
            return
        order = self.local_shape, self.strides, here.stride()
        previous, counts = self.previous_bits, self.counts
        self.__dict__.update(  # one call: no signal comes between its parts
            mask_bits=reorder_bits(self.mask_bits, *order).to(p.device),
            previous_bits=None if previous is None else reorder_bits(previous, *order).to(p.device),
            counts=None if counts is None else reorder(counts, *order).to(p.device),
            strides=here.stride(),
            dtype=p.dtype,
        )

    def _cut(self, sharding: Sharding, here: Tensor) -> None:
        """The model was sharded after it was made sparse: of mask, counters and kept tensors this rank's part stays."""

        def bits(all_bits: Tensor) -> Tensor:
            return ops.pack_mask(sharding.cut(self.bools(all_bits))).to(here.device)

        counts, previous = self.counts, self.previous_bits
        self.__dict__.update(  # one call: no signal comes between its parts
            mask_bits=bits(self.mask_bits),
            previous_bits=None if previous is None else bits(previous),
            counts=None if counts is None else flat(sharding.cut(counts.as_strided(self.shape, self.strides))).to(here.device),
            state={key: sharding.cut(t).to(here.device) for key, t in self.state.items()},
            strides=here.stride(),
            dtype=here.dtype,
            sharding=sharding,
        )

    def fit(self, t: Tensor) -> Tensor:
        """A gradient or momentum with the dtype, device and memory order of the weight: itself if it has them, else a copy."""
        return fit_each([self], [t])[0]

    def fitted_state(self, key: str) -> Tensor:
        """The method's tensor ``key``, laid out like the weight: 0 at first."""
        kept = self.state.get(key)
        if kept is None:
            kept = torch.zeros_like(self.local, dtype=torch.float32, requires_grad=False)
        self.state[key] = fitting = self.fit_float(kept)
        return fitting

    def fit_float(self, t: Tensor) -> Tensor:
        """A float32 tensor of the weight's shape on its device and in its memory order: itself if it is, else a copy."""
        return like(t, self.local, (torch.float32,))

    def bools(self, bits: Tensor) -> Tensor:
        """A packed mask as a bool tensor with the shape and strides of the weight; :meth:`follow` first."""
        shape = self.local_shape
        return ops.unpack_mask(bits, (shape.numel(),)).as_strided(shape, self.strides)

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
        self.follow()
        zero_where(self.local, self.inactive())

    def inactive(self) -> Tensor:
        """The weights outside the mask: bool, shape and strides of the weight."""
        return self.active().logical_not_()


def fit_each(layers: Sequence[SparseLayer], tensors: Sequence[Tensor]) -> list[Tensor]:
    """:meth:`SparseLayer.fit` of one tensor for each layer, without a Python call for those that lie as they should."""
    return [
        t
        if t.layout is torch.strided
        and t.stride() == layer.strides
        and t.dtype is layer.dtype
        and t.device == layer.mask_bits.device
        and not t.is_neg()  # a kernel reads the memory, not the sign that the tensor means
        else like(t, layer.local)
        for layer, t in zip(layers, tensors, strict=True)
    ]


def params_of(layers: Sequence[SparseLayer]) -> list[nn.Parameter]:
    """:attr:`SparseLayer.param` of each, without a Python call for those that are where they were."""
    found = get_each([layer.place for layer in layers])
    return [layer.param if p is None else p for layer, p in zip(layers, found, strict=True)]


def fit_params(layers: Sequence[SparseLayer], params: Sequence[nn.Parameter]) -> bool:
    """Whether masks and counters are where the parameters are, and lie as they do; False where one is a DTensor."""
    return all(
        [
            type(p) is nn.Parameter
            and layer.sharding is None
            and p.stride() == layer.strides
            and p.shape == layer.shape
            and p.device == layer.mask_bits.device
            and p.dtype is layer.dtype
            for layer, p in zip(layers, params, strict=True)
        ]
    )


def follow_each(layers: Sequence[SparseLayer]) -> list[nn.Parameter]:
    """:meth:`SparseLayer.follow` of each, without a Python call for each where all lie where they were."""
    params = params_of(layers)
    return params if fit_params(layers, params) else [layer.follow() for layer in layers]


def make_layer(
    root: nn.Module, c: Candidate, mask: Tensor, nnz: int, counted: bool, sharding: Sharding | None = None
) -> SparseLayer:
    """A layer of model ``root`` with ``mask`` (shape of what this rank holds, any memory order; ``nnz`` active in the whole
    weight); the weights are not touched."""
    p = local_part(c.param)
    # The initial mask is the first round: N = M, whose stored form is 0 everywhere.
    counts = torch.zeros(p.numel(), dtype=torch.int16, device=p.device) if counted else None
    place, bits = ParameterPlace(root, c.name), pack_like(mask, p)
    return SparseLayer(c.name, place, nnz, bits, counts, c.param.shape, p.stride(), p.dtype, sharding=sharding)
