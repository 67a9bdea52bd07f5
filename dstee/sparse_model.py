"""SparseModel: the topology of a model (masks, counters, schedule) and the steps that change it."""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dstee import _export_formats, _optimizer_state, _optimizer_step, _state_dict, ops
from dstee._optimizer_step import Closure, Stepper
from dstee.layer_batch import LayerBatch
from dstee.mask_update import FusingOptimizer, MaskUpdate
from dstee.methods import Method
from dstee.schedule import UpdateSchedule
from dstee.sparse_layer import SparseLayer
from dstee.summary import Summary, summarize

__all__ = ["SparseModel"]


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
        self._unchecked = False  # a state was loaded: check it against the weights before the next step
        self._busy = ""
        self._optimizer: weakref.ref[FusingOptimizer] | None = None
        self._pending: MaskUpdate | None = None  # for the optimizer's next step alone
        self._stepped = False  # a fusing optimizer made a step that is not counted yet
        self._updated: set[str] = set()  # layers whose update that step carried

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_optimizer": None, "_busy": "", "_pending": None}

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
        return self._layer(name).active()

    def masks(self) -> dict[str, Tensor]:
        """All masks by parameter name."""
        return {name: self.mask(name) for name in self.layers}

    def last_grown(self, name: str) -> Tensor:
        """Weights that the last update made active (and that were not before it): bool, shape and strides of the parameter."""
        layer = self._layer(name)
        layer.follow()
        return layer.grown()

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

    def step(self, optimizer: Stepper, *, closure: Closure | None = None, scaler: torch.amp.GradScaler | None = None) -> bool:
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
        core, fusing = self._core(optimizer)
        if scaler is not None and not scaler.is_enabled():
            scaler = None
        if scaler is not None and closure is not None:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")  # torch's own text
        with self._alone("step"):
            update = MaskUpdate.due(self.t + 1, self.round, self.seed, self.method, self.schedule)
            if update is not None and self.method.order == "replace":
                return self._replace(optimizer, core, fusing, update, closure, scaler)
            if fusing is None:
                self._layers_of(core)
                if update is not None:
                    check = partial(update.check_gradients, self.layers.values())
                    closure = _optimizer_step.before_step(closure, check)
            self._pending = update
            try:
                performed = _optimizer_step.run_step(optimizer, core, closure, scaler)
            finally:
                self._pending = None
            return performed and self._finish(core, fusing, update)

    def update(self, optimizer: Stepper | None = None) -> bool:
        """What :meth:`step` does besides the optimizer's step, for hosts that own that step: call it right after.

        After a step that a GradScaler skipped, :class:`SparseSGD` knows and nothing counts; of other optimizers the caller must
        know, and pass them.

        Returns:
            True when the topology changed.

        Raises:
            RuntimeError: as :meth:`step`; the method has ``order="replace"``; no optimizer is known.
        """
        stepped: Stepper | FusingOptimizer | None = optimizer
        if stepped is None and self._optimizer is not None:
            stepped = self._optimizer()
        if stepped is None:
            raise RuntimeError("update() does not know who made the step: pass the optimizer, sparse.update(optimizer)")
        core, fusing = self._core(stepped)
        if self.method.updates and self.method.order == "replace":
            raise RuntimeError(
                f"{self.method.name} with order='replace' updates instead of stepping: call sparse.step(optimizer), "
                "or choose order='after'"
            )
        with self._alone("update"):
            if fusing is not None and not self._stepped:
                return False
            update = MaskUpdate.due(self.t + 1, self.round, self.seed, self.method, self.schedule)
            self._layers_of(core)
            if update is not None:
                update.check_gradients(self.layers.values())
            return self._finish(core, fusing, update)

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

    # --- what a fusing optimizer asks (mask_update.MaskKeeper) -----------------------------------------------------------

    def attach(self, optimizer: FusingOptimizer) -> None:
        """:meth:`update` without an argument means ``optimizer`` from now on. :class:`SparseSGD` calls it."""
        self._optimizer = weakref.ref(optimizer)

    def begin_step(self, optimizer: torch.optim.Optimizer) -> tuple[dict[int, SparseLayer], MaskUpdate | None]:
        """For an optimizer that masks its own step, before it changes anything: the sparse layers by id of their parameter,
        and the mask update that the step is to carry.

        Raises:
            ValueError, RuntimeError: as :meth:`step`.
        """
        layers, update = self._layers_of(optimizer), self._pending
        self._pending = None
        if update is not None:
            update.check_gradients(layers.values())
        return layers, update

    def end_step(self, updated: Sequence[SparseLayer]) -> None:
        """The step was made and carried the mask update of the layers ``updated``; :meth:`update` may count it."""
        self._stepped, self._updated = True, {layer.name for layer in updated}

    def check_at_next_step(self) -> None:
        """Weights, masks and optimizer state are held against each other before the next step, as after loading a state."""
        self._unchecked = True

    # --- inside a step ---------------------------------------------------------------------------------------------------

    def _core(self, optimizer: Stepper | FusingOptimizer) -> tuple[torch.optim.Optimizer, FusingOptimizer | None]:
        """The optimizer inside wrappers, and the same once more if it masks its own step."""
        core = _optimizer_step.core_optimizer(optimizer)
        if not isinstance(core, FusingOptimizer):
            return core, None
        if core.sparse is not self:
            raise ValueError("this SparseSGD belongs to another SparseModel: make it with the one that steps")
        return core, core

    def _layers_of(self, optimizer: torch.optim.Optimizer) -> dict[int, SparseLayer]:
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
        if self._unchecked:
            self._check_loaded(optimizer)
        return layers

    def _check_loaded(self, optimizer: torch.optim.Optimizer) -> None:
        """After a load: the weights must fit the masks; the optimizer's state is made to."""
        inactive = {layer: layer.inactive() for layer in self.layers.values()}
        wrong = [layer.name for layer, off in inactive.items() if bool((layer.param.ne(0) & off).any())]
        if wrong:
            raise ValueError(
                f"weights outside the masks are not 0 in {', '.join(wrong)}: the model's weights and the sparse state are not "
                "from the same checkpoint. Load both, or call sparse.apply_masks() to zero those weights"
            )
        for layer, off in inactive.items():
            _optimizer_state.zero_state(optimizer, layer.param, off)
        self._unchecked = False

    def _replace(
        self,
        optimizer: Stepper,
        core: torch.optim.Optimizer,
        fusing: FusingOptimizer | None,
        update: MaskUpdate,
        closure: Closure | None,
        scaler: torch.amp.GradScaler | None,
    ) -> bool:
        """``order="replace"``: the update alone, without the optimizer's step."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        if _optimizer_step.accumulates(optimizer):
            return False
        self._layers_of(core)
        update.check_gradients(self.layers.values())
        if scaler is not None and not _optimizer_step.unscale(scaler, optimizer):
            return False
        return self._finish(core, fusing, update)

    @torch.no_grad()
    def _finish(self, core: torch.optim.Optimizer, fusing: FusingOptimizer | None, update: MaskUpdate | None) -> bool:
        """After the optimizer's step: masks what it does not mask, updates what it has not updated, counts."""
        if fusing is None:
            for layer in self.layers.values():
                p, off = layer.follow(), layer.inactive()
                p.masked_fill_(off, 0)
                _optimizer_state.zero_state(core, p, off)
        if update is not None:
            done = self._updated if fusing is not None else set()
            left = [layer for name, layer in self.layers.items() if name not in done]
            self._swap(core, fusing, update, [layer for layer in left if layer.param.requires_grad])
            for layer in left:
                if not layer.param.requires_grad:  # frozen: nothing grew
                    layer.previous_bits = None
            self.round += 1
        self.t += 1
        if fusing is not None:
            self._stepped, self._updated = False, set()
        return update is not None

    def _swap(
        self,
        core: torch.optim.Optimizer,
        fusing: FusingOptimizer | None,
        update: MaskUpdate,
        layers: Sequence[SparseLayer],
    ) -> None:
        """The topology alone, for ``layers`` whose step did not carry the update: one call per device."""
        reset_regrown = update.method.reset_regrown
        groups = defaultdict(list)
        for layer in layers:
            if fusing is not None:
                momentum = fusing.momentum_buffer(layer)
            else:  # masks do not tell which weights were dropped and regrown: a marker does, it comes back 0 there
                momentum = torch.ones_like(layer.param) if reset_regrown else None
            groups[layer.param.device, momentum is None].append((layer, momentum))
        for rows in groups.values():
            params: list[Tensor] = [layer.param for layer, _ in rows]
            grads = [layer.fit(layer.param.grad) for layer, _ in rows if layer.param.grad is not None]
            momenta = [momentum for _, momentum in rows if momentum is not None]
            given = grads if update.method.needs_gradients else []
            update.apply(LayerBatch([layer for layer, _ in rows], params, given, momenta))
            if fusing is None:
                for layer, marker in rows:
                    cleared = layer.dropped() if marker is None else marker == 0
                    _optimizer_state.zero_state(core, layer.param, cleared)

    # --- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights: a plain dict of ints, strings and packed CPU tensors by parameter name.

        Loads under ``torch.load(weights_only=True)``; masks and counters are in row-major order, with a digest per tensor.
        """
        return _state_dict.encode(self.t, self.round, self.seed, self.method, self.schedule, self.layers)

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
        return _export_formats.export(self.model, self.layers, format, path, blocksize)

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
        self._unchecked = True
