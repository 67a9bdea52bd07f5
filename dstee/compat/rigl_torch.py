"""The face of ``rigl-torch`` (0.5.2): ``from dstee.compat.rigl_torch import RigLScheduler`` and keep the script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dstee import ops, sparsity_distribution
from dstee.compat._rigl_update import legacy_rigl_update, rigl_update
from dstee.compat._state import pack
from dstee.distributed import ranks

DISTRIBUTIONS = ("uniform", "erk")
METHODS = ("rigl", "dst_ee")
_HYPER = ("delta_T", "alpha", "T_end", "ignore_linear_layers", "static_topo", "sparsity_distribution", "grad_accumulation_n")


def weighted_layers(module: nn.Module, legacy: bool = False) -> Iterator[tuple[nn.Parameter, bool]]:
    """(weight, is it a Linear's?) in the original's order.

    ``legacy`` takes the weight of every module but BatchNorm2d, norms and embeddings included; otherwise weights of one
    dimension and embeddings stay dense, and a shared weight counts once.
    """
    seen: set[int] = set()

    def walk(m: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
        w = getattr(m, "weight", None)
        if not (hasattr(m, "weight") and type(m) is not nn.BatchNorm2d):
            for child in m._modules.values():
                if child is not None:
                    yield from walk(child)
            return
        if legacy and w is None:
            raise AttributeError(f"{type(m).__name__} has weight=None: the original fails here; exact='fixed' leaves it out")
        if w is None or (not legacy and (w.dim() < 2 or isinstance(m, nn.Embedding | nn.EmbeddingBag))):
            return
        if legacy or id(w) not in seen:
            seen.add(id(w))
            yield w, isinstance(m, nn.Linear)

    yield from walk(module)


def _as(t: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` in ``dtype``, where and how ``w`` lies in memory."""
    return torch.empty_like(w, dtype=dtype, requires_grad=False).copy_(t)


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
        return grad * mask if scheduler.exact == "legacy" else torch.where(mask, grad, 0)


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
        state_dict: dict[str, Any] | None = None,
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
        layers = list(weighted_layers(model, exact == "legacy"))
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
            self.random_sparsify()
        self._wrap_step()
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
        for name, value, known in (
            ("exact", self.exact, ("fixed", "legacy")),
            ("method", self.method, METHODS if self.exact == "fixed" else ("rigl",)),
            ("sparsity_distribution", self.sparsity_distribution, DISTRIBUTIONS if self.exact == "fixed" else ("uniform",)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {' or '.join(map(repr, known))} (exact={self.exact!r}), got {value!r}")
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

    def _wrap_step(self) -> None:
        """``optimizer.step()`` masks weights and momenta afterwards."""
        inner = self.optimizer.step
        if self.exact == "legacy":

            def step() -> None:  # no closure, no result, as in the original
                inner()
                self.reset_momentum()
                self.apply_mask_to_weights()

            self.optimizer.step = step  # type: ignore[method-assign,assignment]
            return

        def after(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
            self.reset_momentum()
            self.apply_mask_to_weights()

        self.optimizer.register_step_post_hook(after)

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
        if self.exact == "legacy":
            legacy_rigl_update(self, self.cosine_annealing())
            return
        rigl_update(self, self.cosine_annealing(), counts=self._counts, round=self._round)
        self._round += 1

    def check_if_backward_hook_should_accumulate_grad(self) -> bool:
        """Whether the backward pass under way is one of the last ``grad_accumulation_n`` before an update."""
        if self.T_end is None or self.step >= self.T_end or (self.static_topo and self.exact == "fixed"):
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

    def state_dict(self) -> dict[str, Any]:
        """The original's keys (masks are bool tensors, shared with the scheduler), and "dstee" with counters for dst_ee."""
        state = {
            "dense_allocation": self.dense_allocation,
            "S": self.S,
            "N": self.N,
            "hyperparams": {name: getattr(self, name) for name in _HYPER},
            "step": self.step,
            "rigl_steps": self.rigl_steps,
            "backward_masks": self.backward_masks,
            "_linear_layers_mask": self._linear_layers_mask,
        }
        if self._counts is not None:
            layers = zip(self._counts, self._sparse(), strict=True)
            N = [
                ops.decode_counts(c, pack(mask, w), self._round, (w.numel(),)).as_strided(w.shape, w.stride()).contiguous()
                for c, (w, mask) in layers
            ]
            state["dstee"] = {"c": self.c, "eps": self.eps, "_round": self._round, "counters": N}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, or the original's; its hyper-parameters win over the constructor's, as there.

        Raises:
            ValueError, KeyError: the state is of another model or lacks a key. Nothing has changed then.
        """
        masks, S = state_dict["backward_masks"], state_dict["S"]
        if list(state_dict["N"]) != self.N or len(masks) != len(self.N) or len(S) != len(self.N):
            raise ValueError(f"the state is for weights of sizes {list(state_dict['N'])}, this model has {self.N}")
        for i, (w, mask, s) in enumerate(zip(self.W, masks, S, strict=True)):
            if (mask is None) != (s <= 0) or (mask is not None and mask.shape != w.shape):
                raise ValueError(f"backward_masks[{i}] does not fit a weight {list(w.shape)} of sparsity {s}")
            if self.backward_masks and (self.backward_masks[i] is None) != (mask is None):
                raise ValueError(f"layer {i} is dense in one and sparse in the other: pass state_dict to the constructor")
        missing = [name for name in _HYPER if name not in state_dict["hyperparams"]]
        if missing:
            raise KeyError(f"state_dict['hyperparams'] lacks {', '.join(missing)}")
        step, rigl_steps, extra = state_dict["step"], state_dict["rigl_steps"], state_dict.get("dstee")
        if (extra is not None) != (self.method == "dst_ee") and (extra is not None or step):
            raise ValueError(
                f"the state was {'' if extra else 'not '}saved by method='dst_ee', this scheduler has {self.method!r}"
            )

        for name in _HYPER:
            setattr(self, name, state_dict["hyperparams"][name])
        self.dense_allocation, self.S = state_dict["dense_allocation"], list(S)
        self._linear_layers_mask = list(state_dict["_linear_layers_mask"])
        self.step, self.rigl_steps = step, rigl_steps
        self.backward_masks = [
            None if mask is None else (mask != 0).to(w.device).clone() for w, mask in zip(self.W, masks, strict=True)
        ]
        self._restart_counts()
        if extra is not None:
            self.c, self.eps, self._round = extra["c"], extra["eps"], extra["_round"]
            self._counts = [
                ops.encode_counts(_as(N, w, torch.int32), _as(mask, w, torch.bool), self._round)
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
