"""SparseModel: the topology of a model (masks, counters, schedule) and the steps that change it."""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dstee import _checks, _export, _optimizer_step, _state_dict, ops, sparsity_distribution
from dstee.mask_update import MaskUpdate
from dstee.methods import DSTEE, Method
from dstee.optim import SparseSGD
from dstee.schedule import UpdateSchedule
from dstee.selection import Rules, select
from dstee.sparse_layer import SparseLayer, check_parameter, make_layer
from dstee.summary import Summary, summarize

Distribution = Literal["erk", "uniform", "uniform-dense-first"]


def sparsify(
    model: nn.Module,
    sparsity: float | Mapping[str, float] = 0.9,
    *,
    distribution: Distribution = "erk",
    seed: int = 0,
    method: Method | None = None,
    schedule: UpdateSchedule | None = None,
    include: Rules = None,
    exclude: Rules = None,
    track_exploration: bool = False,
) -> SparseModel:
    """Gives the weights of ``model`` random masks, zeroes what they rule out, and returns the keeper of the masks.

    Sparse become the weights of Linear, Conv1d-3d, ConvTranspose1d-3d and MultiheadAttention; never norms, biases or
    embeddings. A tied weight counts once, under its first name; tied to an embedding it is one.

    Args:
        model: changed in place; float32, bfloat16 or float16 weights.
        sparsity: share of zeros in [0, 1) over all sparse layers together; or one for each layer by parameter name.
        distribution: "erk" (Erdos-Renyi-Kernel; paper, section 4), "uniform", or "uniform-dense-first" (first layer dense).
        seed: the masks depend on it and on the parameter names alone, on every machine.
        method: what an update ranks; default :class:`DSTEE`.
        schedule: when and how much; default every 100 steps, 30 % of the active weights.
        include, exclude: module types, name patterns (as the shell's, for parameters or modules), functions
            ``(name, module, parameter) -> bool``, or lists of these. ``include`` adds to the default (weights with two or more
            dimensions), ``exclude`` wins and reaches everything inside a matching module.
        track_exploration: keep counters for methods that do not need them, for ``dstee.metrics.exploration``.

    Raises:
        ValueError: nothing to make sparse, a pattern that matches nothing, a sparsity out of range or unreachable, a weight
            without memory of its own. TypeError: a dtype or a rule that is not supported. The model has not changed then.
    """
    method = DSTEE() if method is None else method
    schedule = UpdateSchedule() if schedule is None else schedule
    for name, value, kind in (("model", model, nn.Module), ("method", method, Method), ("schedule", schedule, UpdateSchedule)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    chosen = select(model, include, exclude)
    for c in chosen:
        check_parameter(c.name, c.param)
    _checks._check_no_overlap(**{c.name: [c.param] for c in chosen})
    budget = _budget({c.name: c.param.shape for c in chosen}, sparsity, distribution)

    counted = method.needs_counter or track_exploration
    layers = {c.name: make_layer(c, budget[c.name], seed, counted) for c in chosen}
    sparse = SparseModel(model, layers, method, schedule, seed)
    sparse.apply_masks()
    return sparse


def _budget(shapes: dict[str, Sequence[int]], sparsity: float | Mapping[str, float], kind: str) -> dict[str, int]:
    if isinstance(sparsity, Mapping):
        return sparsity_distribution.explicit(shapes, sparsity)
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"sparsity must be a number or a dict from parameter name to number, got {type(sparsity).__name__}")
    if kind == "erk":
        return sparsity_distribution.erk(shapes, float(sparsity))
    if kind in ("uniform", "uniform-dense-first"):
        return sparsity_distribution.uniform(shapes, float(sparsity), dense_first=kind != "uniform")
    raise ValueError(f"unknown distribution {kind!r}, expected erk, uniform or uniform-dense-first")


class SparseModel:
    """The masks, counters and schedule of a model that :func:`sparsify` made sparse.

    ``t`` counts optimizer steps, ``round`` mask updates. Parameters are looked up by name at each use, so the model may be
    moved, cast (float32, bfloat16, float16) or put into another memory format. Weights outside the masks are 0, always.
    """

    def __init__(self, model: nn.Module, layers: dict[str, SparseLayer], method: Method, schedule: UpdateSchedule, seed: int):
        self.model = model
        self.layers = layers
        self.method = method
        self.schedule = schedule
        self.seed = seed
        self.t = 0
        self.round = 0
        self._restored = False  # a state was loaded: check it against the weights before the next step
        self._busy = ""
        self._optimizer: weakref.ref[SparseSGD] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_optimizer": None, "_busy": ""}

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
        return self.nnz / self.numel

    def mask(self, name: str) -> Tensor:
        """The mask of parameter ``name``: bool, shape and strides of the parameter."""
        layer = self._layer(name)
        layer.follow()
        return layer.bools(layer.mask_bits)

    def masks(self) -> dict[str, Tensor]:
        """All masks by parameter name."""
        return {name: self.mask(name) for name in self.layers}

    def last_grown(self, name: str) -> Tensor:
        """Weights that the last update made active (and that were not before it): bool, shape and strides of the parameter."""
        mask, layer = self.mask(name), self.layers[name]
        if layer.previous_bits is None:
            return torch.zeros_like(mask)
        return mask & ~layer.bools(layer.previous_bits)

    def counter(self, name: str) -> Tensor:
        """N: mask rounds in which each weight was active, the initial one included: int32, shape and strides of the parameter.

        Raises:
            ValueError: the layer has no counters.
        """
        layer = self._layer(name)
        p = layer.follow()
        if layer.counts is None:
            raise ValueError(f"{name} has no counters: {self.method.name} needs none; call sparsify(track_exploration=True)")
        counts = ops.decode_counts(layer.counts, layer.mask_bits, self.round, (layer.numel,))
        return counts.as_strided(p.shape, p.stride())

    def summary(self) -> Summary:
        """Per layer and in all: shape, density, active weights and, with counters, exploration degree R; print it."""
        return summarize(self.layers.values())

    def _layer(self, name: str) -> SparseLayer:
        if name not in self.layers:
            raise KeyError(f"no sparse layer {name!r}, expected one of {', '.join(self.layers)}")
        return self.layers[name]

    # --- stepping --------------------------------------------------------------------------------------------------------

    def step(
        self, optimizer: Any, *, closure: Callable[[], Any] | None = None, scaler: torch.amp.GradScaler | None = None
    ) -> bool:
        """The whole step: ``optimizer``'s, and a mask update when one is due. Call it after backward, before zero_grad.

        Any torch optimizer will do, wrapped or not, if it holds the model's sparse weights; with :class:`SparseSGD` step and
        update are one sweep, with others weights and parameter-shaped state are masked again afterwards. A step that the
        optimizer or the ``scaler`` skips (not finite gradients, accumulation in a wrapper) changes nothing and does not count.

        Args:
            optimizer: its own ``step`` is called, hooks and all; not on a due step of a method with ``order="replace"``.
            closure: as for ``optimizer.step``.
            scaler: calls ``scaler.step(optimizer)``; ``scaler.update()`` stays with the caller.

        Returns:
            True when the topology changed.

        Raises:
            ValueError: the optimizer does not hold the sparse weights; loaded weights and masks do not belong together.
            RuntimeError: an update is due and a sparse weight has no gradient (named). Nothing has changed then.
        """
        core = self._core(optimizer)
        if scaler is not None and not scaler.is_enabled():
            scaler = None
        if scaler is not None and closure is not None:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")  # torch's own text
        with self._alone("step"):
            update = MaskUpdate.due(self.t + 1, self.round, self.seed, self.method, self.schedule)
            if update is not None and self.method.order == "replace":
                return self._replace(optimizer, core, update, closure, scaler)
            if isinstance(core, SparseSGD):
                core._update = update
            else:
                self._admit(core)
                if update is not None:
                    closure = _optimizer_step.before_step(closure, partial(update.check_gradients, self.layers.values()))
            try:
                performed = _optimizer_step.run_step(optimizer, core, closure, scaler)
            finally:
                if isinstance(core, SparseSGD):
                    core._update = None
            return performed and self._finish(core, update)

    def update(self, optimizer: Any = None) -> bool:
        """What :meth:`step` does besides the optimizer's step, for hosts that own that step: call it right after.

        After a step that a GradScaler skipped, :class:`SparseSGD` knows and nothing counts; of other optimizers the caller must
        know, and pass them.

        Returns:
            True when the topology changed.

        Raises:
            RuntimeError: as :meth:`step`; the method has ``order="replace"``; no optimizer is known.
        """
        core = self._optimizer() if optimizer is None and self._optimizer is not None else optimizer
        if core is None:
            raise RuntimeError("update() does not know who made the step: pass the optimizer, sparse.update(optimizer)")
        core = self._core(core)
        if self.method.updates and self.method.order == "replace":
            raise RuntimeError(
                f"{self.method.name} with order='replace' updates instead of stepping: call sparse.step(optimizer), "
                "or choose order='after'"
            )
        with self._alone("update"):
            if isinstance(core, SparseSGD) and not core._stepped:
                return False
            update = MaskUpdate.due(self.t + 1, self.round, self.seed, self.method, self.schedule)
            self._admit(core)
            if update is not None:
                update.check_gradients(self.layers.values())
            return self._finish(core, update)

    def apply_masks(self) -> None:
        """Zeroes the weights outside the masks, as after loading dense weights into the model."""
        with torch.no_grad():
            for layer in self.layers.values():
                layer.follow().masked_fill_(layer.inactive(), 0)

    @contextlib.contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        if self._busy:
            raise RuntimeError(
                f"{what}() called inside {self._busy}() of the same SparseModel: take it out of the closure or hook"
            )
        self._busy = what
        try:
            yield
        finally:
            self._busy = ""

    def _attach(self, optimizer: SparseSGD) -> None:
        self._optimizer = weakref.ref(optimizer)

    def _core(self, optimizer: Any) -> torch.optim.Optimizer:
        core = _optimizer_step.core_optimizer(optimizer)
        if isinstance(core, SparseSGD) and core.sparse is not self:
            raise ValueError("this SparseSGD belongs to another SparseModel: make it with the one that steps")
        return core

    def _admit(self, optimizer: torch.optim.Optimizer) -> dict[int, SparseLayer]:
        """The layers by id of their parameter, which ``optimizer`` must hold."""
        layers = {id(layer.follow()): layer for layer in self.layers.values()}
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not layers.keys() <= held:
            missing = [layer.name for key, layer in layers.items() if key not in held and layer.param.requires_grad]
            if missing:
                raise ValueError(
                    f"the optimizer does not hold these sparse weights of the model: {', '.join(missing)}. "
                    "Create it after wrapping, sharding or replacing the model's parameters"
                )
        if self._restored:
            self._settle(optimizer)
        return layers

    def _settle(self, optimizer: torch.optim.Optimizer) -> None:
        """After a load: the weights must fit the masks; the optimizer's state is made to."""
        inactive = {layer: layer.inactive() for layer in self.layers.values()}
        wrong = [layer.name for layer, off in inactive.items() if bool((layer.param.ne(0) & off).any())]
        if wrong:
            raise ValueError(
                f"weights outside the masks are not 0 in {', '.join(wrong)}: the model's weights and the sparse state are not "
                "from the same checkpoint. Load both, or call sparse.apply_masks() to zero those weights"
            )
        for layer, off in inactive.items():
            _optimizer_step.zero_state(optimizer, layer.param, off)
        self._restored = False

    def _replace(self, optimizer: Any, core: torch.optim.Optimizer, update: MaskUpdate, closure, scaler) -> bool:
        """``order="replace"``: the update alone, without the optimizer's step."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        if _optimizer_step.accumulates(optimizer):
            return False
        self._admit(core)
        update.check_gradients(self.layers.values())
        if scaler is not None and not _optimizer_step.unscale(scaler, optimizer):
            return False
        return self._finish(core, update)

    @torch.no_grad()
    def _finish(self, core: torch.optim.Optimizer, update: MaskUpdate | None) -> bool:
        """After the optimizer's step: masks what it does not mask, updates what it has not updated, counts."""
        if not isinstance(core, SparseSGD):
            for layer in self.layers.values():
                p, off = layer.follow(), layer.inactive()
                p.masked_fill_(off, 0)
                _optimizer_step.zero_state(core, p, off)
        if update is not None:
            self._swap(core, update)
            for name, layer in self.layers.items():
                if name not in update.done:  # frozen: nothing grew
                    layer.previous_bits = None
            self.round += 1
        self.t += 1
        if isinstance(core, SparseSGD):
            core._stepped = False
        return update is not None

    def _swap(self, core: torch.optim.Optimizer, update: MaskUpdate) -> None:
        """The topology alone, for the layers that the optimizer did not fuse with its step: one call per device."""
        groups = defaultdict(list)
        for name, layer in self.layers.items():
            p = layer.param
            if name not in update.done and p.requires_grad:
                # SparseSGD's buffer, or a marker that comes back 0 where state of other optimizers must become 0.
                momentum = core._momentum(p, layer) if isinstance(core, SparseSGD) else torch.ones_like(p)
                groups[p.device, momentum is None].append((layer, p, momentum))
        for (_, without), group in groups.items():
            layers, params, momenta = map(list, zip(*group, strict=True))
            grads = [layer.fit(layer.param.grad) for layer in layers] if update.method.needs_gradients else None
            update.apply(layers, params, grads, None if without else momenta)
            if not isinstance(core, SparseSGD):
                for p, marker in zip(params, momenta, strict=True):
                    _optimizer_step.zero_state(core, p, marker == 0)

    # --- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights: a plain dict of ints, strings and packed CPU tensors by parameter name.

        Loads under ``torch.load(weights_only=True)``; masks and counters are in row-major order, with a digest per tensor.
        """
        return _state_dict.encode(self.t, self.round, self.seed, self.method, self.schedule, self.layers)

    def export(self, format: str = "dense", path: Any = None, *, blocksize: _export.Blocks = None) -> dict[str, Tensor]:
        """The model's state for others, as copies: ``format`` "dense", "csr", "bsr" (with ``blocksize``), or "safetensors".

        Sparse weights come dense with zeros, as matrices [out, rest] of ``torch.sparse``, or, in the file ``path``, as active
        values and packed masks; all else as it is. ``dstee.export.from_export`` is the way back.
        """
        return _export.export(self, format, path, blocksize)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Resumes bit for bit from :meth:`state_dict`: masks, counters, ``t``, ``round``, ``seed``, ``method``, ``schedule``.

        Weights come from the model's own state and momenta from the optimizer's, in any order; the next step checks that
        the weights are 0 outside the masks.

        Args:
            state_dict: what :meth:`state_dict` returned.
            strict: every layer must be on both sides, with as many active weights. If False, saved layers that the model
                does not have are ignored, others keep their mask and count anew, and saved numbers of weights are taken over.

        Raises:
            ValueError: listing all that is wrong (names, shapes, numbers, digests). Nothing has changed then.
        """
        restored = _state_dict.decode(state_dict, self.layers, strict)
        tensors = {name: _state_dict.restore_layer(layer, restored) for name, layer in self.layers.items()}
        for name, (bits, counts, previous) in tensors.items():
            layer = self.layers[name]
            layer.mask_bits, layer.counts, layer.previous_bits = bits, counts, previous
            layer.nnz = restored.nnz.get(name, layer.nnz)
        self.t, self.round, self.seed = restored.t, restored.round, restored.seed
        self.method, self.schedule = restored.method, restored.schedule
        self._restored = True
