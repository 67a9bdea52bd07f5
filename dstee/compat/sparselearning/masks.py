"""``masks`` of a Masking: a dict of float tensors to look at, one bit per weight to keep."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from dstee import ops
from dstee.encoding import flat, flip_counts
from dstee.layer_batch import count_active
from dstee.memory_order import pack_like
from dstee.parameter_names import ParameterPlace
from dstee.sparse_layer import SparseLayer, check_parameter

__all__ = ["MaskView", "Masks"]


class MaskView(Tensor):
    """What ``masks[name]`` returns: a plain 0/1 tensor whose in-place changes are noticed, through ``.data`` too."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()  # unlike Tensor.data, it shares the version counter

    def __deepcopy__(self, memo: dict[int, object]) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


class Masks(MutableMapping[str, Tensor]):
    """Live mapping from parameter name to a 0/1 tensor, over one packed mask per weight.

    ``masks[name]`` is a tensor with the shape of the weight, made on access. Assigning a mask takes effect, and so does
    changing that tensor in place, until the next mask update: after it, get the tensor anew. Copies and pickles are an
    OrderedDict of plain tensors.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.round = 0  # updates done, which the counters of the layers are stored against
        self._layers: dict[str, SparseLayer] = {}
        self._given: dict[str, tuple[Tensor, int]] = {}

    def add(self, name: str, module: nn.Module) -> None:
        """A mask for parameter ``name`` of ``module``, all inactive.

        Raises:
            TypeError, ValueError: the parameter cannot be sparse here (dtype, memory); the text says why.
        """
        place = ParameterPlace(module, name)
        p = place.get()
        assert p is not None, f"the module has no parameter {name}"
        check_parameter(name, p)
        bits = ops.pack_mask(torch.zeros_like(p, dtype=torch.bool, requires_grad=False))
        self._layers[name] = SparseLayer(name, place, 0, bits, None, p.shape, p.stride(), p.dtype)

    def layers(self) -> list[SparseLayer]:
        """The packed layers, in order, with what was written to the tensors, each where its weight is now."""
        layers = list(self._layers.values())
        for layer in layers:
            layer.follow()
        self._take_in()
        return layers

    def replaced(self) -> None:
        """The packed masks have changed: forget the tensors handed out."""
        self._given.clear()

    def recount(self) -> None:
        """Counts the active weights of all layers anew: one host sync per device."""
        layers = list(self._layers.values())
        for layer, nnz in zip(layers, count_active([layer.mask_bits for layer in layers]), strict=True):
            layer.nnz = nnz

    def set_bits(self, name: str, mask: Tensor) -> None:
        """Replaces one mask; :meth:`recount` afterwards."""
        layer = self._layers[name]
        p, old = layer.follow(), layer.mask_bits
        layer.mask_bits = pack_like(mask, p)
        if layer.counts is not None:
            before, after = (flat(layer.bools(bits)) for bits in (old, layer.mask_bits))
            N = flip_counts(layer.counts, before, self.round)
            N = torch.where(after, N.clamp(min=1), N.clamp(max=self.round))  # 1..round+1 when active, else 0..round
            layer.counts = flip_counts(N, after, self.round).to(torch.int16)
        self._given.pop(name, None)

    def bools(self, name: str) -> Tensor:
        """A mask as a bool tensor, shape and strides of the weight."""
        layer = self._layers[name]
        layer.follow()
        return layer.bools(layer.mask_bits)

    def _take_in(self) -> None:
        """Packs the tensors that the caller has written to."""
        written = [name for name, (view, version) in self._given.items() if view._version != version]
        for name in written:
            view = self._given[name][0]
            self.set_bits(name, view.as_subclass(Tensor))
            self._given[name] = view, view._version
        if written:
            self.recount()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._layers:
            raise KeyError(name)
        if name not in self._given:
            view = self.bools(name).to(self.dtype).as_subclass(MaskView)
            self._given[name] = view, view._version
        return self._given[name][0]

    def __setitem__(self, name: str, mask: Tensor) -> None:
        if name not in self._layers:
            raise KeyError(f"{name!r} is no masked parameter; there are {', '.join(self._layers) or 'none'}: add_module first")
        layer = self._layers[name]
        if not isinstance(mask, Tensor) or mask.shape != layer.shape:
            got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"the mask of {name} must be a tensor of shape {list(layer.shape)}, got {got}")
        self._take_in()
        self.set_bits(name, mask.detach())
        self.recount()

    def __delitem__(self, name: str) -> None:
        del self._layers[name]
        self._given.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"Masks({', '.join(f'{layer.name}: {layer.nnz}/{layer.numel}' for layer in self._layers.values())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), None, None, iter([(name, _plain_copy(self[name])) for name in self])

    def whole_copy(self, memo: dict[int, Any]) -> Masks:
        """What ``copy.deepcopy`` makes of the mapping where it is part of a Masking: live masks of the copied model."""
        self._take_in()
        masks = memo[id(self)] = Masks(self.dtype)
        masks.round = self.round
        masks._layers = copy.deepcopy(self._layers, memo)
        return masks

    def copy(self) -> dict[str, Tensor]:
        """A plain dict of plain tensors."""
        return {name: _plain_copy(self[name]) for name in self}


def _plain_copy(view: Tensor) -> Tensor:
    return view.as_subclass(Tensor).clone()
