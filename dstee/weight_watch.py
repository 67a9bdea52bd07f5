"""Notices writes to sparse weights from outside, and what they hold outside their masks."""

from __future__ import annotations

import operator
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dstee import _optimizer_state, ops
from dstee._tensor_layouts import layouts
from dstee.distributed.ranks import agree_on, sum_each
from dstee.distributed.sharding import check_sizes, everyone_of, reshard
from dstee.distributed.where import as_dtensor, local_part
from dstee.layer_batch import count_each
from dstee.sparse_layer import SparseLayer, fit_params, follow_each, params_of

__all__ = ["CheckedWeights", "WeightWatch", "find_outside", "refuse_other_masks"]


class WeightWatch:
    """Remembers which parameters there were after the last step, where they lay, and their version counters."""

    def __init__(self) -> None:
        self._params: list[nn.Parameter] = []
        self._stamps: list[Stamp] = []
        self._gradient: tuple[weakref.ref[Any], int] | None = None

    def note(self, layers: Iterable[SparseLayer]) -> None:
        """What there is now is as it should be."""
        self._params = params_of(list(layers))
        self._stamps = _stamps(self._params)

    def note_step(self, in_place: bool) -> None:
        """As :meth:`note` for the parameters of the last one, and their gradients were stepped. ``in_place``: they lie where
        they lay then, which need not be looked at."""
        self._stamps = _later(self._stamps, self._params) if in_place else _stamps(self._params)
        self._gradient = None
        for p in self._params:
            if p.grad is not None:
                self._gradient = weakref.ref(_memory(p.grad)), p.grad._version
                break

    def changed(self, layers: Iterable[SparseLayer], alike: bool = False) -> list[SparseLayer]:
        """The layers whose parameter is another one, or was written to; all of them before the first :meth:`note`.

        ``alike``: of weights that are cut among ranks those that were written to as a whole, which ranks do alike; a rank may
        write to its own part alone, and an empty part is never written to.
        """
        layers = list(layers)
        if self.unchanged(layers) is not None:
            return []
        params = params_of(layers)
        if len(params) != len(self._params):
            return layers
        stamps = _stamps(params)
        seen = zip(layers, params, stamps, self._params, self._stamps, strict=True)
        return [
            layer
            for layer, p, stamp, q, noted in seen
            if p is not q or (stamp[0] != noted[0] if alike and layer.sharding is not None else stamp != noted)
        ]

    def unchanged(self, layers: Sequence[SparseLayer]) -> list[nn.Parameter] | None:
        """The parameters of ``layers`` where these are the layers of the last :meth:`note`, their masks lie like them and
        :meth:`changed` finds none."""
        params = params_of(layers)
        if len(params) != len(self._params) or not all(map(operator.is_, params, self._params)):
            return None
        if not fit_params(layers, params):  # a mask may have followed there and back
            return None
        return params if _stamps(params) == self._stamps else None

    def was_another(self, layer: SparseLayer) -> bool:
        """True when there was another parameter in the layer's place."""
        return bool(self._params) and not any(layer.param is p for p in self._params)

    def same_gradient(self, layers: Iterable[SparseLayer]) -> bool:
        """True when the first gradient is the one that was noted, and nobody has written to it since."""
        now = next((layer.param.grad for layer in layers if layer.param.grad is not None), None)
        if now is None or self._gradient is None:
            return False
        noted, version = self._gradient
        return noted() is _memory(now) and now._version == version

    def nothing_happened(self, layers: Iterable[SparseLayer]) -> bool:
        """True when neither a gradient nor a weight has changed since :meth:`note`: no optimizer has stepped."""
        layers = list(layers)
        return self.same_gradient(layers) and not self.changed(layers)


def _memory(t: Tensor) -> Any:
    """What to refer to weakly: ``torch.utils.swap_tensors``, with which ``Module.to`` moves DTensors, refuses tensors that
    somebody refers to."""
    part = local_part(t)
    return part.untyped_storage() if part.layout is torch.strided else part


Stamp: TypeAlias = tuple[int, int, object]
"""Version of a parameter; version of its memory and where that lies: a DTensor has a version of its own, its shard another."""


def _stamps(params: Sequence[nn.Parameter]) -> list[Stamp]:
    places = layouts(params)
    if places is None:
        parts = [local_part(p) for p in params]
        places = [(part.data_ptr(), part.stride()) for part in parts]
    return _later([(0, 0, place) for place in places], params)


def _later(stamps: Sequence[Stamp], params: Sequence[nn.Parameter]) -> list[Stamp]:
    """The stamps of parameters that still lie where ``stamps`` says."""
    return [
        (p._version, 0 if type(p) is nn.Parameter else local_part(p)._version, place)
        for p, (_, _, place) in zip(params, stamps, strict=True)
    ]


def find_outside(layers: Sequence[SparseLayer], here: bool = False) -> dict[SparseLayer, int]:
    """The layers that have weights outside their masks which are not 0, and how many; one host sync for each device.

    Where weights are cut among ranks, all of these must come here together, and the numbers are added up; but for what is
    ``here`` alone.
    """

    def count(group: list[SparseLayer]) -> Tensor:
        return ops.count_outside([layer.local for layer in group], [layer.mask_bits for layer in group])

    found = count_each(layers, lambda layer: layer.follow().device, count)
    if not here:
        found = sum_each(found, [layer.holders for layer in layers])
    return {layer: n for layer, n in zip(layers, found, strict=True) if n}


def refuse_other_masks(outside: Mapping[SparseLayer, int]) -> None:
    """Raises ValueError for layers that are as sparse as they should be, but elsewhere: what was learned would be zeroed."""
    held = [int(layer.local.detach().count_nonzero()) for layer in outside]
    held = sum_each(held, [layer.holders for layer in outside])
    elsewhere = [layer.name for layer, n in zip(outside, held, strict=True) if n <= layer.nnz]
    if elsewhere:
        raise ValueError(
            f"the weights of {', '.join(elsewhere)} are sparse, but not where the masks are: they belong to other masks. Load "
            "the sparse state that was saved with them, sparse.load_state_dict(...), or call sparse.apply_masks() to zero "
            "what these masks rule out"
        )


class CheckedWeights:
    """The layers of a :class:`dstee.SparseModel` under their invariant: weights are 0 outside the masks, whoever writes."""

    def __init__(self, model: nn.Module, layers: dict[str, SparseLayer]) -> None:
        self.model = model
        self.layers = layers
        self._watch = WeightWatch()
        self._agreed = sum(layer.sharding is not None for layer in layers.values())  # of whose cuts all ranks know
        self._alike = self._agreed  # of which all ranks have the same masks and settings
        self._unchecked = False  # a state was loaded: check it against the weights before the next step
        self._compared = False  # copies on other ranks were looked at
        self._torn = False  # a step of another optimizer has begun and its weights are not masked yet

    def _settle(self) -> None:
        """Before anything else: what an exception has left is put in order."""

    def _compare_ranks(self) -> None:
        """Before a step, where it is due: ranks that should hold the same are held against each other."""

    def follow_all(self) -> dict[int, SparseLayer]:
        """The layers by id of their parameter, each after it has gone where that went (:meth:`SparseLayer.follow`).

        Where the model was sharded since, what one rank finds wrong is raised on all.
        """
        reshard(self.model)
        layers = list(self.layers.values())
        problem: Exception | None = None
        found = {}
        try:
            found = {id(p): layer for p, layer in zip(follow_each(layers), layers, strict=True)}
        except (TypeError, ValueError, RuntimeError) as error:
            problem = error
        cut = [layer for layer in layers if layer.sharding is not None]
        if problem is None and len(cut) == self._agreed:
            return found
        uncut = any(layer.sharding is None and as_dtensor(layer.param) is not None for layer in layers if problem)
        everyone = [everyone_of(layer.param) for layer in layers] if uncut or len(cut) != self._agreed else []
        if any(everyone):
            text = agree_on(None if problem is None else str(problem), everyone)
            wrong = [text] if text else check_sizes([layer.name for layer in cut], [layer.sharding for layer in cut])
            if wrong and problem is None:
                problem = RuntimeError("\n  ".join(wrong))
            self._agreed = len(cut)
        if problem is not None:
            raise problem
        return found

    def check_at_next_step(self) -> None:
        """Weights, masks and optimizer state are held against each other before the next step, as after loading a state."""
        self._unchecked = True

    def check_weights(self, full: bool = True) -> None:
        """Makes sure that the weights are 0 outside the masks, whoever has written to them.

        Weights that somebody wrote there (a dense state, an average copied back) become 0, with one warning that names the
        layers. Without ``full`` only parameters are looked at that are others than after the last step, or were written to
        through themselves (not through ``.data``).

        Raises:
            ValueError: a layer has no more weights than its mask, but elsewhere: they belong to other masks.
        """
        self.follow_all()
        self._check(full)

    def _check(self, full: bool) -> None:
        self._settle()
        suspects = list(self.layers.values()) if full else self._watch.changed(self.layers.values())
        if not suspects and not self._agreed:
            self._torn = False  # what comes next is somebody else's
            return
        told = suspects
        if self._agreed:  # ranks talk about weights that all of them have written to; what one does to its part, it sees alone
            alike = self._watch.changed(self.layers.values(), alike=True)
            told = [layer for layer in self.layers.values() if layer in alike or (layer.holders is None and layer in suspects)]
        outside = find_outside(told)
        if outside and not self._torn:
            refuse_other_masks(outside)
        if told is not suspects:
            outside |= find_outside([layer for layer in suspects if layer not in told], here=True)
        for layer in outside:
            layer.clear_outside()
        if suspects:
            self._watch.note(self.layers.values())
        if outside and not self._torn:
            found = ", ".join(f"{layer.name} ({n:,})" for layer, n in outside.items())
            warnings.warn(f"weights outside the masks were written and are 0 again: {found}", stacklevel=4)
        self._torn = False  # what comes next is somebody else's

    def _layers_of(
        self, optimizers: Sequence[torch.optim.Optimizer], *, full: bool = False, foreign: bool = False
    ) -> dict[int, SparseLayer]:
        """The layers by id of their parameter, which ``optimizers`` must hold, their weights 0 outside the masks.

        ``full``: all weights are looked at, not only those that were written to. ``foreign``: an optimizer that knows nothing
        of masks has just stepped, and writes everywhere.
        """
        if not (full or foreign or self._unchecked or self._agreed) and self._compared:
            every = list(self.layers.values())
            params = self._watch.unchanged(every)
            if params is not None:  # as after the last step: what follows would find nothing
                self._settle()
                layers = {id(p): layer for p, layer in zip(params, every, strict=True)}
                _optimizer_state.refuse_missing(optimizers, layers, self._watch.was_another)
                self._torn = False
                return layers
        layers = self.follow_all()
        _optimizer_state.refuse_missing(optimizers, layers, self._watch.was_another)
        self._compare_ranks()
        if self._unchecked:
            self._check_loaded(optimizers, stepped=foreign)
        elif foreign:
            self._watch.note(self.layers.values())
        else:
            self._check(full)
        return layers

    def _check_loaded(self, optimizers: Sequence[torch.optim.Optimizer], stepped: bool) -> None:
        """After a load: the weights must fit the masks; the optimizer's state is made to. Where an optimizer that knows nothing
        of masks has ``stepped`` since, it has written everywhere, and the weights tell nothing."""
        wrong = {} if stepped else find_outside(list(self.layers.values()))
        if wrong:
            raise ValueError(
                f"weights outside the masks are not 0 in {', '.join(layer.name for layer in wrong)}: the model's weights and "
                "the sparse state are not from the same checkpoint. Load both, or call sparse.apply_masks() to zero those "
                "weights"
            )
        for layer in self.layers.values():
            for optimizer in optimizers:
                _optimizer_state.zero_state(optimizer, layer.param, layer.inactive())
        self._unchecked = False
        self._watch.note(self.layers.values())
