"""rigl-torch's ``RigLScheduler``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dstee import ops, sparsity_distribution
from dstee.compat.rigl_torch.fixed import Fixed
from dstee.compat.rigl_torch.legacy import Legacy
from dstee.compat.rigl_torch.state_dict import HYPERPARAMETERS, SchedulerState, check
from dstee.distributed import ranks
from dstee.encoding import bonus_table
from dstee.memory_order import like, pack_like

__all__ = ["DenseGradHook", "RigLScheduler"]

VARIANTS = {"fixed": Fixed(), "legacy": Legacy()}


class DenseGradHook:
    """Sees a weight's gradient before it is masked; keeps the mean over the last ``grad_accumulation_n`` backward passes."""

    def __init__(self, layer: int, scheduler: RigLScheduler) -> None:
        self.layer, self.scheduler = layer, scheduler
        self.dense_grad: Tensor | None = None

    @torch.no_grad()
    def __call__(self, grad: Tensor) -> Tensor:
        scheduler = self.scheduler
        if not scheduler.check_if_backward_hook_should_accumulate_grad():
            self.dense_grad = None
        else:
            part = grad / scheduler.grad_accumulation_n
            self.dense_grad = part if self.dense_grad is None else self.dense_grad.add_(part)
        mask = scheduler.backward_masks[self.layer]
        assert mask is not None
        return scheduler._variant.masked(grad, mask)


class RigLScheduler:
    """rigl-torch's scheduler: ``if pruner(): optimizer.step()``.

    Every ``delta`` calls below ``T_end`` a call swaps ``alpha``'s cosine share of each layer's weights and returns False:
    skip the step. Constructor, attributes and ``state_dict`` are the original's; its checkpoints load here and ours there.

    ``exact="fixed"`` (default) differs in this: norms, other vectors and embeddings stay dense; ties go to the lowest index and
    inactive zeros never count as kept; optimizer state of any kind (not only SGD's) is cleared where weights are dropped; under
    DDP the ranks grow by the mean gradient, not by the mean of its local absolutes; NaN and Inf gradients outside the mask are
    dropped; ``optimizer.step`` takes a closure and returns its loss. ``exact="legacy"`` reproduces the original in all that; in
    both, masks are applied once per update, not once per pair of layers.

    Args:
        model, optimizer, ..., state_dict: as in the original. Trainable weights in float32, bfloat16 or float16.
        sparsity_distribution: "uniform" as in the original (first layer dense, so the overall density exceeds what is asked
            for) or "erk" (the overall density is exact; linear layers left dense by ``ignore_linear_layers`` do not count).
        method: "rigl", or "dst_ee": growth by ``abs(g) + c * ln(t) / (N + eps)``.
            Under a GradScaler gradients arrive scaled, which RigL's ranking does not mind; ``c`` is then in scaled units.

    Raises:
        ValueError: a number or name is out of range. Nothing has been changed then (the original checks at the end).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        dense_allocation: float = 1,
        T_end: int | None = None,
        sparsity_distribution: str = "uniform",
        ignore_linear_layers: bool = True,
        delta: int = 100,
        alpha: float = 0.3,
        static_topo: bool = False,
        grad_accumulation_n: int = 1,
        state_dict: SchedulerState | None = None,
        *,
        exact: str = "fixed",
        method: str = "rigl",
        c: float = 1e-3,
        eps: float = 1.0,
    ) -> None:
        self.exact, self.method, self.c, self.eps = exact, method, c, eps
        self.dense_allocation, self.T_end, self.sparsity_distribution = dense_allocation, T_end, sparsity_distribution
        self.ignore_linear_layers, self.delta_T, self.alpha = ignore_linear_layers, delta, alpha
        self.static_topo, self.grad_accumulation_n = static_topo, grad_accumulation_n
        self._check(loading=state_dict is not None)
        layers = self._variant.layers(model)
        if not layers:
            raise ValueError(f"{type(model).__name__} has no weight to make sparse")
        self.model, self.optimizer = model, optimizer
        self.W = [w for w, _ in layers]
        self._linear_layers_mask = [int(linear) for _, linear in layers]
        if any(getattr(w, "_has_rigl_backward_hook", False) for w in self.W):
            raise Exception("This model already has been registered to a RigLScheduler.")  # the original's kind and text
        self.N = [w.numel() for w in self.W]
        self.step = self.rigl_steps = 0
        self.backward_masks: list[Tensor | None] = []
        self._counts: list[Tensor] | None = None
        self._round = 0
        if state_dict is not None:
            self.load_state_dict(state_dict)
            self.apply_mask_to_weights()
        else:
            self.S = self._sparsities()
            self._variant.check({f"W[{i}]": w for i, (w, s) in enumerate(zip(self.W, self.S, strict=True)) if s > 0})
            self.random_sparsify()
        self._variant.after_step(optimizer, self._mask_step)
        self._handles = []
        self.backward_hook_objects: list[DenseGradHook | None] = []
        for i, w in enumerate(self.W):
            hook = DenseGradHook(i, self) if self.S[i] > 0 else None
            self.backward_hook_objects.append(hook)
            if hook is not None:
                self._handles.append(w.register_hook(hook))
                w._has_rigl_backward_hook = True  # type: ignore[attr-defined]

    def _check(self, loading: bool) -> None:
        if not 0 < self.dense_allocation <= 1:
            raise ValueError(f"Dense allocation must be on the interval (0, 1]. Got: {self.dense_allocation}")
        self._known("exact", self.exact, tuple(VARIANTS))
        self._variant: Fixed = VARIANTS[self.exact]
        self._known("method", self.method, self._variant.methods)
        self._known("sparsity_distribution", self.sparsity_distribution, self._variant.distributions)
        if not 0 < self.grad_accumulation_n < self.delta_T:
            raise ValueError(
                f"grad_accumulation_n must be in 1..delta - 1 = 1..{self.delta_T - 1}, got {self.grad_accumulation_n}"
            )
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], the share of weights that an update swaps, got {self.alpha}")
        if not loading and not self.static_topo and (self.T_end is None or self.T_end < 1):
            raise ValueError(
                f"T_end must be a number of steps >= 1, got {self.T_end}: pass 0.75 * steps in all (the original "
                "fails with None at the first backward)"
            )

    def _known(self, name: str, value: str, known: tuple[str, ...]) -> None:
        if value not in known:
            raise ValueError(f"{name} must be {' or '.join(map(repr, known))} (exact={self.exact!r}), got {value!r}")

    def _sparsities(self) -> list[float]:
        dense = [bool(linear) and self.ignore_linear_layers for linear in self._linear_layers_mask]
        if self.sparsity_distribution == "uniform":
            dense[0] = dense[0] or len(self.W) > 1
            return [0 if d else 1 - self.dense_allocation for d in dense]
        shapes = {str(i): w.shape for i, w in enumerate(self.W) if not dense[i]}
        nnz = sparsity_distribution.erk(shapes, 1 - self.dense_allocation)
        return [0 if d else 1 - nnz[str(i)] / self.N[i] for i, d in enumerate(dense)]

    @torch.no_grad()
    def random_sparsify(self) -> None:
        """Draws the masks from torch's CPU generator, in the original's order; rank 0's hold for all ranks."""
        self.backward_masks = []
        for w, n, s in zip(self.W, self.N, self.S, strict=True):
            if s <= 0:
                self.backward_masks.append(None)
                continue
            zeros = round(s * n) if self.sparsity_distribution == "erk" else int(s * n)
            mask = torch.ones(n, dtype=torch.bool)
            mask[torch.randperm(n)[:zeros]] = False
            mask = mask.view(w.shape).to(w.device)
            self.backward_masks.append(ranks.broadcast(mask.to(torch.uint8)).bool())
        self.apply_mask_to_weights()
        self._restart_counts()

    def _restart_counts(self) -> None:
        if self.method == "dst_ee":
            sparse = [w for w, s in zip(self.W, self.S, strict=True) if s > 0]
            self._counts = [torch.zeros(w.numel(), dtype=torch.int16, device=w.device) for w in sparse]
            self._round = 0

    def _mask_step(self) -> None:
        """What follows every ``optimizer.step()``."""
        self.reset_momentum()
        self.apply_mask_to_weights()

    # --- steps -----------------------------------------------------------------------------------------------------------

    def __call__(self) -> bool:
        """Call it between backward and the step: False when it updated the masks, and the step must be skipped.

        Raises:
            RuntimeError: an update is due and there are no dense gradients. Nothing has changed then.
        """
        self.step += 1
        if self.static_topo or self.step % self.delta_T != 0 or self.T_end is None or self.step >= self.T_end:
            return True
        try:
            self._rigl_step()
        except BaseException:
            self.step -= 1
            raise
        self.rigl_steps += 1
        return False

    def _rigl_step(self) -> None:
        counted, bonus = self._counts is not None, None
        if counted:
            bonus = bonus_table(self.c, self.eps, max(self.step, 1), self._round)
        self._variant.update(self, self.cosine_annealing(), self._counts, bonus, self._round if counted else 0)
        self._round += 1

    def check_if_backward_hook_should_accumulate_grad(self) -> bool:
        """Whether the backward pass under way is one of the last ``grad_accumulation_n`` before an update."""
        if self.T_end is None or self.step >= self.T_end or (self.static_topo and not self._variant.records_static):
            return False
        return self.delta_T - self.step % self.delta_T <= self.grad_accumulation_n

    def cosine_annealing(self) -> float:
        """Share of the active weights that an update swaps now."""
        if self.T_end is None:
            raise ValueError("T_end is None: there is no schedule")
        return float(self.alpha / 2 * (1 + np.cos((self.step * np.pi) / self.T_end)))

    def _sparse(self) -> Iterator[tuple[Tensor, Tensor]]:
        for w, mask in zip(self.W, self.backward_masks, strict=True):
            if mask is not None:
                yield w, mask

    @torch.no_grad()
    def reset_momentum(self) -> None:
        """Zeroes momentum buffers outside the masks, in place."""
        for w, mask in self._sparse():
            buffer = self.optimizer.state.get(w, {}).get("momentum_buffer")
            if buffer is not None:
                buffer.mul_(mask)

    @torch.no_grad()
    def apply_mask_to_weights(self) -> None:
        """Zeroes weights outside the masks, in place."""
        for w, mask in self._sparse():
            w.mul_(mask)

    @torch.no_grad()
    def apply_mask_to_gradients(self) -> None:
        """Zeroes gradients outside the masks, in place; weights without a gradient are skipped."""
        for w, mask in self._sparse():
            if w.grad is not None:
                w.grad.mul_(mask)

    # --- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> SchedulerState:
        """The original's keys (masks are bool tensors, shared with the scheduler), and "dstee" with counters for dst_ee."""
        state: SchedulerState = {
            "dense_allocation": self.dense_allocation,
            "S": self.S,
            "N": self.N,
            "hyperparams": {name: getattr(self, name) for name in HYPERPARAMETERS},
            "step": self.step,
            "rigl_steps": self.rigl_steps,
            "backward_masks": self.backward_masks,
            "_linear_layers_mask": self._linear_layers_mask,
        }
        if self._counts is not None:
            layers = zip(self._counts, self._sparse(), strict=True)
            N = [
                ops.decode_counts(c, pack_like(mask, w), self._round, (w.numel(),)).as_strided(w.shape, w.stride()).contiguous()
                for c, (w, mask) in layers
            ]
            state["dstee"] = {"c": self.c, "eps": self.eps, "_round": self._round, "counters": N}
        return state

    def load_state_dict(self, state_dict: SchedulerState) -> None:
        """Restores :meth:`state_dict`, or the original's; its hyper-parameters win over the constructor's, as there.

        Raises:
            ValueError, KeyError: the state is of another model or lacks a key. Nothing has changed then.
        """
        check(state_dict, self.W, self.backward_masks, self.method)
        for name in HYPERPARAMETERS:
            setattr(self, name, state_dict["hyperparams"][name])
        self.dense_allocation, self.S = state_dict["dense_allocation"], list(state_dict["S"])
        self._linear_layers_mask = list(state_dict["_linear_layers_mask"])
        self.step, self.rigl_steps = state_dict["step"], state_dict["rigl_steps"]
        self.backward_masks = [
            None if mask is None else (mask != 0).to(w.device).clone()
            for w, mask in zip(self.W, state_dict["backward_masks"], strict=True)
        ]
        self._restart_counts()
        if (extra := state_dict.get("dstee")) is not None:
            self.c, self.eps, self._round = extra["c"], extra["eps"], extra["_round"]
            self._counts = [
                ops.encode_counts(like(N.to(torch.int32), w, (torch.int32,)), like(mask, w, (torch.bool,)), self._round)
                for N, (w, mask) in zip(extra["counters"], self._sparse(), strict=True)
            ]

    def __str__(self) -> str:
        counts = [n if mask is None else int(mask.sum()) for n, mask in zip(self.N, self.backward_masks, strict=True)]
        conv = [i for i, linear in enumerate(self._linear_layers_mask) if not linear]

        def share(nnz: int, n: int) -> str:
            return f"{nnz}/{n} ({nnz / max(n, 1) * 100:.2f}%)"

        lines = {
            "layers": len(self.N),
            "nonzero_params": f"[{', '.join(f'{c}/{n}' for c, n in zip(counts, self.N, strict=True))}]",
            "nonzero_percentages": f"[{', '.join(f'{c / n * 100:.2f}%' for c, n in zip(counts, self.N, strict=True))}]",
            "total_nonzero_params": share(sum(counts), sum(self.N)),
            "total_CONV_nonzero_params": share(sum(counts[i] for i in conv), sum(self.N[i] for i in conv)),
            "step": self.step,
            "num_rigl_steps": self.rigl_steps,
            "ignoring_linear_layers": self.ignore_linear_layers,
            "sparsity_distribution": self.sparsity_distribution,
        }
        return "RigLScheduler(\n" + "".join(f"{key}={value},\n" for key, value in lines.items()) + ")"
