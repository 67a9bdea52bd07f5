"""What a training costs whose density changes: active weights and FLOPs, added up step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dstee._state_checks import is_int
from dstee.metrics import Flops, forward_cost
from dstee.sparse_model import SparseModel

__all__ = ["TrainingCost"]


class TrainingCost:
    """Mean density and FLOPs of a training with any method, exact: it keeps sums of whole numbers, no FLOPs.

    ::

        cost = TrainingCost(sparse)
        for x, y in batches:
            ...
            before = cost.nnz_of(sparse)
            changed = sparse.step(optimizer)
            cost.add(before, dense_gradient=cost.needs_dense_gradient(sparse, changed))
        print(cost.mean_density(), cost.flops(sparse, x[:1]).training_ratio)

    Args:
        sizes: weights of each layer by name, or the model that has them.
    """

    def __init__(self, sizes: SparseModel | Mapping[str, int]) -> None:
        if isinstance(sizes, SparseModel):
            sizes = {name: layer.numel for name, layer in sizes.layers.items()}
        self.sizes = dict(sizes)
        self.steps = self.dense_steps = 0
        self._active = dict.fromkeys(self.sizes, 0)
        self._active_if_dense = dict.fromkeys(self.sizes, 0)

    @staticmethod
    def nnz_of(sparse: SparseModel) -> dict[str, int]:
        """Active weights of each layer now. Where an update left the numbers on a GPU, one host sync."""
        return {name: layer.nnz for name, layer in sparse.layers.items()}

    @staticmethod
    def needs_dense_gradient(sparse: SparseModel, updated: bool) -> bool:
        """Whether a step of the model's method has dense weight gradients; ``updated``: it was one with a mask update."""
        return sparse.method.needs_every_gradient or (updated and sparse.method.needs_gradients)

    def add(self, nnz: Mapping[str, int], dense_gradient: bool) -> None:
        """A step on ``nnz`` active weights by layer, those before its update.

        Raises:
            ValueError: these are other layers.
        """
        if nnz.keys() != self.sizes.keys():
            raise ValueError(f"expected active weights of {', '.join(self.sizes)}, got them of {', '.join(nnz)}")
        for name, n in nnz.items():
            self._active[name] += n
            self._active_if_dense[name] += n * dense_gradient
        self.steps += 1
        self.dense_steps += dense_gradient

    def mean_density(self) -> float:
        """The mean over the steps of the share of active weights.

        Raises:
            ValueError: there was no step yet.
        """
        self._check()
        return sum(self._active.values()) / (self.steps * sum(self.sizes.values()))

    def flops(self, sparse: SparseModel, example_input: object) -> Flops:
        """As :func:`dstee.metrics.flops`, ``sparse_training`` from the steps that were added.

        A step costs three forwards at its density, and one with a dense weight gradient two of these and a dense one.

        Raises:
            ValueError: as :func:`dstee.metrics.flops`; there was no step yet.
        """
        self._check()
        cost = forward_cost(sparse, example_input)
        dense, now = cost.of(self.sizes), cost.of(self.nnz_of(sparse))
        forwards = cost.rest * self.steps + sum(cost.per_weight[name] * n for name, n in self._active.items())
        spared = cost.rest * self.dense_steps + sum(cost.per_weight[name] * n for name, n in self._active_if_dense.items())
        training = (3 * forwards - spared + dense * self.dense_steps) / self.steps
        return Flops(round(dense), round(now), 3 * round(dense), training)

    def _check(self) -> None:
        if not self.steps:
            raise ValueError("no step was added yet: there is no mean")

    def state_dict(self) -> dict[str, Any]:
        """The sums, plain ints."""
        return {
            "steps": self.steps,
            "dense_steps": self.dense_steps,
            "active": dict(self._active),
            "active_if_dense": dict(self._active_if_dense),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            ValueError: it is not the state of a training of these layers. Nothing has changed then.
        """
        fresh = self.state_dict()
        if not isinstance(state, Mapping) or state.keys() != fresh.keys():
            raise ValueError(f"the cost of a training is a dict of {', '.join(fresh)}")
        steps, dense_steps = state["steps"], state["dense_steps"]
        if not (is_int(steps, 0, 2**63 - 1) and is_int(dense_steps, 0, steps)):
            raise ValueError(f"the cost is of {steps!r} steps, {dense_steps!r} of them with dense gradients: not so many")
        for key, most in (("active", steps), ("active_if_dense", dense_steps)):
            sums = state[key]
            if not isinstance(sums, Mapping) or sums.keys() != self.sizes.keys():
                raise ValueError(f"{key} of the cost is not of the layers {', '.join(self.sizes)}")
            if wrong := [name for name, n in sums.items() if not is_int(n, 0, most * self.sizes[name])]:
                raise ValueError(f"{key} of the cost is impossible for {wrong[0]}: {sums[wrong[0]]!r}")
        self.steps, self.dense_steps = steps, dense_steps
        self._active, self._active_if_dense = dict(state["active"]), dict(state["active_if_dense"])
