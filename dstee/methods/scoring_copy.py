"""What methods share that choose masks before training: they score weights with a copy of the model, which stays as it is."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dstee.methods.base import Method
from dstee.methods.context import LossFn, Start, forward, map_tensors
from dstee.parameter_names import ParameterPlace, plain_modules
from dstee.sparsity_distribution import seed64

__all__ = ["AtInitialisation", "ScoringCopy", "scoring_copy"]


@dataclass(frozen=True, kw_only=True)
class AtInitialisation(Method):
    """Chooses masks once, by scores on batches, and shares the budget out to the layers by them."""

    group = "at initialisation"
    updates = False
    needs_batches = True
    needs_whole_weights = True
    chooses_budgets = True


@dataclass(frozen=True)
class ScoringCopy:
    """The copy, in the modes of the model. Errors name ``method``.

    Attributes:
        weights: of its parameters those that get masks, under the names of :attr:`Start.weights`; the others need no gradient.
        dtype: weights, buffers and batches of narrower floating-point types are widened to it.
    """

    method: str
    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    loss_fn: LossFn
    dtype: torch.dtype

    def output(self, inputs: Any) -> Any:
        """What the copy makes of a batch's inputs."""
        return forward(self.model, self._widened(inputs))

    def tensor(self, output: Any) -> Tensor:
        """The output itself, which must be a tensor."""
        if isinstance(output, Tensor):
            return output
        raise TypeError(
            f"{self.method} computes with what the model returns: expected a tensor, got {type(output).__name__}; wrap the "
            "model in a module that returns one"
        )

    def gradients(
        self, batches: Iterable[tuple[Any, Any]], temperature: float = 1.0, along: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Sums over ``batches`` of the gradients of the loss, whose model output is divided by ``temperature``; with ``along``,
        of the Hessian's products with it. By name, like the weights.

        Raises:
            ValueError: no batches, a loss that is no finite number, weights on which no loss depends, gradients that are not
                finite. TypeError: an output that cannot be divided.
        """
        sums: dict[str, Tensor] = {}
        number = 0
        for number, (inputs, targets) in enumerate(batches, 1):
            value = self._loss(number, inputs, targets, temperature)
            found = self.gradients_of(value, create_graph=along is not None)
            if along is not None:
                found = self.gradients_of(torch.stack([(g * along[name]).sum().to(value) for name, g in found.items()]).sum())
            for name, g in found.items():
                sums[name] = sums[name] + g if name in sums else g
        if not number:
            raise ValueError(
                f"{self.method}: batches are empty, expected [(inputs, targets), ...], which start anew at each use"
            )
        missing = [name for name in self.weights if name not in sums]
        if along is None and missing:
            raise ValueError(
                f"{self.method} has no gradient for {', '.join(missing)}: the loss does not depend on it; exclude= leaves it "
                "dense, or pass batches that reach it"
            )
        sums.update({name: torch.zeros_like(self.weights[name]) for name in missing})
        if odd := [name for name, g in sums.items() if not bool(g.isfinite().all())]:
            raise ValueError(f"{self.method}: gradients of {', '.join(odd)} are not finite: check weights, batches and loss_fn")
        return sums

    def gradients_of(self, value: Tensor, create_graph: bool = False) -> dict[str, Tensor]:
        """Of one number by the weights that it depends on."""
        if not value.requires_grad:
            return {}
        found = torch.autograd.grad(value, list(self.weights.values()), create_graph=create_graph, allow_unused=True)
        return {name: g for name, g in zip(self.weights, found, strict=True) if g is not None}

    def scores(self, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each weight times its factor, without history: row-major, on the first weight's device."""
        device = next(iter(self.weights.values())).device
        return {name: (w.detach() * factors[name].detach()).to(device).contiguous() for name, w in self.weights.items()}

    def _loss(self, number: int, inputs: Any, targets: Any, temperature: float) -> Tensor:
        output = self.output(inputs)
        if temperature != 1:
            output = self.tensor(output) / temperature
        loss = self.loss_fn(output, self._widened(targets))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{self.method}: loss_fn returned {got}, expected one number as a tensor, the batch's mean loss")
        if not bool(loss.isfinite()):
            raise ValueError(f"{self.method}: the loss of batch {number} is {loss.item()}: check weights, batches and loss_fn")
        return loss

    def _widened(self, value: Any) -> Any:
        return map_tensors(lambda t: _widened(t, self.dtype), value)


@contextmanager
def scoring_copy(method: str, s: Start, dtype: torch.dtype = torch.float32) -> Iterator[ScoringCopy]:
    """Inside, weights of a copy of ``s.model`` are scored, and random numbers (dropout, shuffled batches) depend on the seed
    alone. The model and the global generators are afterwards as before, also after an error.

    Wrappers around the model (DDP, ``torch.compile``) are left out of the copy, which runs eagerly, without autocast and
    with attention that can be differentiated twice.

    Raises:
        ValueError: the model cannot be copied.
    """
    plain = [module for name, _, module in plain_modules(s.model) if not name][-1]
    try:
        model = copy.deepcopy(plain)
    except Exception as error:
        raise ValueError(
            f"{method} scores weights on a copy of the model, but copy.deepcopy of {type(plain).__name__} fails: {error}"
        ) from error
    for t in chain(model.parameters(), model.buffers()):
        t.requires_grad_(False)
        t.data = _widened(t.data, dtype)
    weights = {}
    for name in s.weights:
        p = ParameterPlace(model, name).get()
        if p is None or p is s.weights[name]:
            raise ValueError(f"{method} scores weights on a copy of the model, but copy.deepcopy does not copy {name}")
        p.requires_grad_()
        weights[name] = p
    kind = next(iter(weights.values())).device.type
    devices = sorted({p.device.index for p in weights.values() if p.device.type == "cuda"})
    with (
        _seeded(seed64("scores", s.seed, ""), devices),
        torch.enable_grad(),
        torch.autocast(kind, enabled=False),
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield ScoringCopy(method, model, weights, s.loss_fn, dtype)


def _widened(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if t.is_floating_point() and t.dtype.itemsize < dtype.itemsize else t


@contextmanager
def _seeded(seed: int, devices: list[int]) -> Iterator[None]:
    """The generators of torch, of the CPU and of these CUDA devices, start from ``seed``; these, Python's and NumPy's are put
    back."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            for generator in [torch.default_generator, *(torch.cuda.default_generators[i] for i in devices)]:
                generator.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
