"""Notices writes to sparse weights from outside, and what they hold outside their masks."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from dstee import ops
from dstee.layer_batch import count_each
from dstee.sparse_layer import SparseLayer

__all__ = ["WeightWatch", "find_outside", "refuse_other_masks"]


class WeightWatch:
    """Remembers which parameters there were after the last step, where they lay, and their version counters."""

    def __init__(self) -> None:
        self._params: list[nn.Parameter] = []
        self._stamps: list[tuple[int, int]] = []
        self._gradient: tuple[weakref.ref[Tensor], int] | None = None

    def note(self, layers: Iterable[SparseLayer]) -> None:
        """What there is now is as it should be."""
        self._params = [layer.param for layer in layers]
        self._stamps = _stamps(self._params)
        self._gradient = next(((weakref.ref(p.grad), p.grad._version) for p in self._params if p.grad is not None), None)

    def changed(self, layers: Iterable[SparseLayer]) -> list[SparseLayer]:
        """The layers whose parameter is another one, or was written to; all of them before the first :meth:`note`."""
        layers = list(layers)
        params = [layer.param for layer in layers]
        if len(params) != len(self._params):
            return layers
        stamps = _stamps(params)
        if stamps == self._stamps and all(map(_same, params, self._params)):
            return []
        seen = zip(layers, params, stamps, self._params, self._stamps, strict=True)
        return [layer for layer, p, stamp, q, noted in seen if p is not q or stamp != noted]

    def was_another(self, layer: SparseLayer) -> bool:
        """True when there was another parameter in the layer's place."""
        return bool(self._params) and not any(layer.param is p for p in self._params)

    def same_gradient(self, layers: Iterable[SparseLayer]) -> bool:
        """True when the first gradient is the one that was noted, and nobody has written to it since."""
        now = next((layer.param.grad for layer in layers if layer.param.grad is not None), None)
        if now is None or self._gradient is None:
            return False
        noted, version = self._gradient
        return noted() is now and now._version == version

    def nothing_happened(self, layers: Iterable[SparseLayer]) -> bool:
        """True when neither a gradient nor a weight has changed since :meth:`note`: no optimizer has stepped."""
        layers = list(layers)
        return self.same_gradient(layers) and not self.changed(layers)


def _stamps(params: Sequence[nn.Parameter]) -> list[tuple[int, int]]:
    return [(p._version, p.data_ptr()) for p in params]


def _same(p: nn.Parameter, q: nn.Parameter) -> bool:
    return p is q


def find_outside(layers: Sequence[SparseLayer]) -> dict[SparseLayer, int]:
    """The layers that have weights outside their masks which are not 0, and how many; one host sync for each device."""

    def count(group: list[SparseLayer]) -> Tensor:
        return ops.count_outside([layer.follow() for layer in group], [layer.mask_bits for layer in group])

    found = count_each(layers, lambda layer: layer.follow().device, count)
    return {layer: n for layer, n in zip(layers, found, strict=True) if n}


def refuse_other_masks(outside: Mapping[SparseLayer, int]) -> None:
    """Raises ValueError for layers that are as sparse as they should be, but elsewhere: what was learned would be zeroed."""
    elsewhere = [layer.name for layer in outside if int(layer.param.detach().count_nonzero()) <= layer.nnz]
    if elsewhere:
        raise ValueError(
            f"the weights of {', '.join(elsewhere)} are sparse, but not where the masks are: they belong to other masks. Load "
            "the sparse state that was saved with them, sparse.load_state_dict(...), or call sparse.apply_masks() to zero "
            "what these masks rule out"
        )
