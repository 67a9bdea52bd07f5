"""SparseModel: a model's sparse layers as their user sees them."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dstee import _export_formats, _state_dict, _state_shaped, method_hooks, ops
from dstee.distributed.sharding import reshard
from dstee.distributed.where import as_dtensor, local_part
from dstee.methods import Method
from dstee.parameter_names import ParameterPlace
from dstee.schedule import UpdateSchedule
from dstee.selection import LeftOut
from dstee.sparse_layer import SparseLayer
from dstee.summary import Summary, summarize
from dstee.topology import Topology

__all__ = ["SparseModel", "masked_parameters"]

# All there are, by id. No weak references to parameters: torch could not swap these then, which is how it moves DTensors.
_sparse_models: weakref.WeakValueDictionary[int, SparseModel] = weakref.WeakValueDictionary()


def masked_parameters() -> set[int]:
    """The ids of all parameters that some SparseModel masks."""
    there = [sparse for reference in _sparse_models.valuerefs() if (sparse := reference()) is not None]
    found = [layer.place.get() for sparse in there for layer in sparse.layers.values()]
    return {id(p) for p in found if p is not None}


def _norm(tensors: list[Tensor], norm_type: float, error_if_nonfinite: bool) -> Tensor:
    """As torch's, for plain tensors and DTensors together."""
    cut = [t for t in tensors if as_dtensor(t) is not None]
    plain = [t for t in tensors if as_dtensor(t) is None]
    if not cut:
        return torch.nn.utils.get_total_norm(plain, norm_type, error_if_nonfinite)
    parts = [torch.nn.utils.get_total_norm(group, norm_type) for group in (cut, plain) if group]
    whole = [part if (d := as_dtensor(part)) is None else d.full_tensor() for part in parts]
    return torch.nn.utils.get_total_norm(whole, norm_type, error_if_nonfinite)


class SparseModel(Topology):
    """The masks, counters and schedule of a model that :func:`sparsify` made sparse.

    ``t`` counts optimizer steps, ``round`` mask updates. Parameters are looked up by name at each use, so the model may be
    moved, cast (float32, bfloat16, float16) or put into another memory format. Weights outside the masks are 0, always.
    """

    left_out: tuple[LeftOut, ...] = ()
    """Matrix weights that :func:`sparsify` left dense without being told to, and why."""

    def __init__(self, model: nn.Module, layers: dict[str, SparseLayer], method: Method, schedule: UpdateSchedule, seed: int):
        super().__init__(model, layers, method, schedule, seed)
        _sparse_models[id(self)] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _sparse_models[id(self)] = self

    def __repr__(self) -> str:
        return (
            f"SparseModel({len(self.layers)} layers, {self.nnz:,} of {self.numel:,} weights active, "
            f"{self.method}, t={self.t}, round={self.round})"
        )

    # --- looking ---------------------------------------------------------------------------------------------------------

    @property
    def nnz(self) -> int:
        """Active weights of all sparse layers."""
        return sum(layer.nnz for layer in self.layers.values())

    @property
    def numel(self) -> int:
        """Weights of all sparse layers, active or not."""
        return sum(layer.numel for layer in self.layers.values())

    def density(self) -> float:
        """Share of active weights over all sparse layers."""
        self.check_weights()
        return self.nnz / max(self.numel, 1)

    def mask(self, name: str) -> Tensor:
        """The mask of parameter ``name``: bool, shape and strides of the parameter, placed as it is where it is a DTensor."""
        layer = self._layer(name)
        return layer.placed(layer.active())

    def masks(self) -> dict[str, Tensor]:
        """All masks by parameter name."""
        return {name: self.mask(name) for name in self.layers}

    def last_grown(self, name: str) -> Tensor:
        """Weights that the last update made active (and that were not before it): bool, like :meth:`mask`."""
        layer = self._layer(name)
        layer.follow()
        return layer.placed(layer.grown())

    def counter(self, name: str) -> Tensor:
        """N: mask rounds in which each weight was active, the initial one included: int32, like :meth:`mask`.

        Raises:
            ValueError: the layer has no counters.
        """
        layer = self._layer(name)
        layer.follow()
        if layer.counts is None:
            raise ValueError(f"{name} has no counters: {self.method.name} needs none; call sparsify(track_exploration=True)")
        counts = ops.decode_counts(layer.counts, layer.mask_bits, self.round, (layer.counts.numel(),))
        return layer.placed(counts.as_strided(layer.local_shape, layer.strides))

    def summary(self) -> Summary:
        """Per layer and in all: shape, density, active weights, dead units, with counters R and R / R_max; print it."""
        self.check_weights()
        return summarize(self.layers.values(), self.t, self.method, self.schedule, self.left_out)

    def _layer(self, name: str) -> SparseLayer:
        if name not in self.layers:
            raise KeyError(f"no sparse layer {name!r}, expected one of {', '.join(self.layers)}")
        reshard(self.model)
        return self.layers[name]

    # --- what others hold ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def apply_masks(self, other_model: nn.Module | None = None) -> None:
        """Zeroes the weights outside the masks: the model's, or those of ``other_model``, a copy such as an average (EMA, SWA).

        Raises:
            ValueError: ``other_model`` has no parameter of a layer's name and shape, or one that is cut among ranks in another
                way. Nothing has changed then.
        """
        if other_model is None:
            self.follow_all()
            for layer in self.layers.values():
                layer.clear_outside()
            self._watch.note(self.layers.values())
            return
        reshard(other_model)
        self.follow_all()
        found = {name: ParameterPlace(other_model, name).get() for name in self.layers}
        wrong = [name for name, p in found.items() if p is None or p.shape != self.layers[name].shape]
        if wrong:
            raise ValueError(f"other_model has no parameter of this name and shape: {', '.join(wrong)}. Nothing was changed")
        wrong = [name for name, p in found.items() if p is not None and not self.layers[name].lies_as(p)]
        if wrong:
            raise ValueError(
                f"other_model has these weights cut among ranks in another way than the model: {', '.join(wrong)}. Lay it out "
                "as the model is. Nothing was changed"
            )
        for name, p in found.items():
            if p is not None:
                local_part(p).masked_fill_(self.layers[name].inactive().to(p.device), 0)

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> Tensor:
        """As :func:`torch.nn.utils.clip_grad_norm_` over the model's parameters, by the norm of what is stepped.

        Gradients of inactive weights move nothing, so they do not count towards the norm; they are scaled with the others,
        since growth compares them.

        Returns:
            The norm before clipping.
        """
        layers = self.follow_all()
        params = [p for p in self.model.parameters() if p.grad is not None]
        stepped = []
        for p in params:
            layer, grad = layers.get(id(p)), p.grad
            assert grad is not None
            masked = None if layer is None else layer.grad
            stepped.append(grad if layer is None or masked is None else layer.placed(masked.masked_fill(layer.inactive(), 0)))
        total = _norm(stepped, norm_type, error_if_nonfinite)
        for kind in (False, True):  # torch takes no mixtures
            those = [p for p in params if (as_dtensor(p) is None) is kind]
            torch.nn.utils.clip_grads_with_norm_(those, max_norm, total)
        return total

    def remove(self, *names: str) -> None:
        """Leaves the layers ``names`` alone from now on: their weights keep their values, and all of them may change.

        Raises:
            KeyError: a name is none of a sparse layer. Nothing has changed then.
        """
        for name in names:
            self._layer(name)
        self._settle()
        self.layers = {name: layer for name, layer in self.layers.items() if name not in names}

    # --- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self, full: bool = False) -> dict[str, Any]:
        """Everything but the weights, as copies that load under ``torch.load(weights_only=True)``.

        Tensors have the shape of their weight and one "head", a JSON text, says the rest, with a fingerprint of each tensor.
        The keys depend on the model and its method alone, so ``torch.distributed.checkpoint`` saves and loads it, or the
        SparseModel itself, like a model's state.

        Of weights that are cut among ranks the tensors are DTensors, placed as the weights are. Their ranks call this together.

        Args:
            full: the compact form instead, an eighth of the size for masks: a dict of numbers, packed masks and digests, whole
                on every rank.
        """
        self._settle()
        self._follow_together()
        encode = _state_dict.encode if full else _state_shaped.encode
        return encode(self._t, self._round, self.seed, self.method, self.schedule, self.layers, self.budget, self._numbers)

    def _follow_together(self) -> None:
        self._agreed = -1  # ranks that have nothing to tell must hear what others find
        self.follow_all()

    def export(
        self,
        format: str = "dense",
        path: str | Path | None = None,
        *,
        blocksize: tuple[int, int] | Mapping[str, tuple[int, int]] | None = None,
    ) -> dict[str, Tensor]:
        """The model's state for others, as copies: ``format`` "dense", "csr", "bsr" (with ``blocksize``), or "safetensors".

        Sparse weights come dense with zeros, as matrices [out, rest] of ``torch.sparse``, or, in the file ``path``, as active
        values and packed masks; all else as it is. ``dstee.export.from_export`` is the way back.
        """
        self.check_weights()
        return _export_formats.export(self.model, self.layers, format, path, blocksize)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Resumes bit for bit from :meth:`state_dict`: masks, counters, ``t``, ``round``, ``seed``, ``method``, ``schedule``.

        Weights come from the model's own state and momenta from the optimizer's, in any order; the next step checks that
        the weights are 0 outside the masks.

        Args:
            state_dict: what :meth:`state_dict` returned, in either form, or 0.1.0's; the same on all ranks.
            strict: every layer must be on both sides, with as many active weights where the method leaves that to the
                distribution. If False, saved layers that the model does not have are ignored, others keep their mask and
                count anew, and saved numbers of weights are taken over.

        Raises:
            ValueError: listing all that is wrong (names, shapes, numbers, damage), on all ranks what the lowest has found.
                Nothing has changed then.
        """
        self._settle()
        self._follow_together()
        restored = _state_dict.decode(state_dict, self.layers, strict)
        layers = {}
        for name, layer in self.layers.items():
            bits, counts, previous = _state_dict.restore_layer(layer, restored)
            layers[name] = dataclasses.replace(
                layer, mask_bits=bits, counts=counts, previous_bits=previous, count=restored.nnz.get(name, layer.nnz),
                state={key: layer.fit_float(t).clone() for key, t in restored.kept.get(name, {}).items()},
            )  # fmt: skip
        numbers = method_hooks.fresh_numbers(restored.method, layers.values())
        self.__dict__.update(  # one call: no signal comes in between
            layers=layers, _t=restored.t, _round=restored.round, seed=restored.seed, _method=restored.method,
            _schedule=restored.schedule, _unchecked=True, _stepped=False, _updated=set(),
            _numbers={key: torch.full_like(x, restored.numbers[key]) for key, x in numbers.items()},
            budget={name: restored.budget.get(name, self.budget[name]) for name in layers},
        )  # fmt: skip
