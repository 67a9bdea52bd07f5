"""One layer of SIS (Verma & Pesquet, Sparsifying Networks via Subdifferential Inclusion, 2021): few weights, outputs much the
same."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dstee import rules

__all__ = ["Activation", "SparsifiedLayer", "distance", "sparsify_layer"]

Activation = Literal["relu", "identity"]


class SparsifiedLayer(NamedTuple):
    """``weight`` is 0 outside ``mask``; ``eta``: the root mean square :func:`distance` over the samples."""

    weight: Tensor
    mask: Tensor
    eta: float


def distance(products: Tensor, bias: Tensor, outputs: Tensor, activation: Activation) -> Tensor:
    """How far ``W x + b - y`` is from the subdifferential of f at y, for ``y = prox_f(W x + b)``: signed, one by one.

    relu is the proximity operator of the indicator of the numbers >= 0, whose subdifferential at y is {0} where y > 0, and
    all numbers <= 0 where y = 0: there the product may be anything that relu makes 0. That of the identity is {0}.

    Args:
        products: ``W x``, [samples, out].
        bias: [out].
        outputs: y, [samples, out].
    """
    off = products + bias - outputs
    return torch.where(outputs > 0, off, off.clamp_min(0)) if activation == "relu" else off


@torch.no_grad()
def sparsify_layer(
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    k: int,
    activation: Activation = "relu",
    *,
    penalty: Literal["l1", "l0"] = "l1",
    iterations: int = 60,
    refit: bool = True,
) -> SparsifiedLayer:
    """Weights of which ``k`` are active, under which the layer's outputs on ``inputs`` stay as close as can be found.

    The paper minimises ``|W|_1`` subject to ``distance <= eta``. Here the number of weights is given and eta is found: of
    ``lambda * |W|_1 + distance^2 / 2``, which has the same solutions, with the lambda that leaves k weights, adapted in every
    iteration. Douglas-Rachford splitting, between both terms in the variables (W, Z) on one side and the subspace Z = X W^T
    on the other, has every step in closed form. In the end the k largest weights stay, and ``refit`` lowers the distance over
    them. What comes out is never further off than the k largest of the given weights, which are taken where they are better.

    Args:
        weight: [out, in], floating point. bias: [out], stays as it is.
        inputs: [samples, in]. Time and memory grow with the square of the samples.
        outputs: [samples, out], after the activation.
        k: active weights, 0..out * in.
        activation: "relu"; "identity" for any activation that loses nothing, with ``outputs`` before it.
        penalty: "l1" as in the paper, or "l0": the k largest stay in each iteration, unshrunk. It has no proof and more often
            than not a smaller distance.
        iterations: of the splitting.

    Returns:
        The weight in its own dtype, its mask with exactly ``k`` True, and eta.

    Raises:
        ValueError: shapes that do not fit, ``k`` or an option out of range.
    """
    _check(weight, bias, inputs, outputs, k, activation, penalty, iterations)
    kind = torch.float64 if weight.dtype is torch.float64 else torch.float32
    W, X, Y = weight.to(kind), inputs.to(kind), outputs.to(kind)
    b = torch.zeros_like(Y[0]) if bias is None else bias.to(kind)
    problem = _Problem(X, Y, b, activation)
    found = [_keep(W, k)]
    if problem.scale > 0 and k < W.numel():
        found.append(_keep(_split(problem, k, penalty, iterations), k))
        if refit:
            found = [(_refit(problem, w, mask, iterations), mask) for w, mask in found]
    weight_of, mask = min(reversed(found), key=lambda pair: problem.error(pair[0]))
    rounded = weight_of.to(weight.dtype)
    return SparsifiedLayer(rounded, mask, problem.error(rounded.to(kind)) / max(len(X), 1) ** 0.5)


class _Problem:
    """A layer's samples, scaled so that the inputs have a mean square of 1 / samples: then steps of 1 suit every layer."""

    def __init__(self, inputs: Tensor, outputs: Tensor, bias: Tensor, activation: Activation) -> None:
        self.scale = float(inputs.norm()) / inputs.shape[1] ** 0.5
        unit = self.scale or 1.0
        self.inputs, self.outputs, self.bias = inputs / unit, outputs / unit, bias / unit
        self.unit, self.activation = unit, activation

    def off(self, products: Tensor) -> Tensor:
        return distance(products, self.bias, self.outputs, self.activation)

    def error(self, weight: Tensor) -> float:
        """The distance over all samples and units, in the units of the outputs."""
        return self.unit * float(self.off(self.inputs @ weight.T).norm())


def _keep(weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest weights and their mask; the lower index first on ties."""
    mask = rules.first_k(rules.rank(weight.flatten()), torch.tensor(k, device=weight.device)).view(weight.shape)
    return weight.masked_fill(~mask, 0), mask


def _split(problem: _Problem, k: int, penalty: str, iterations: int) -> Tensor:
    """Douglas-Rachford splitting from 0. The projection on Z = X W^T solves systems with I + X X^T, inverted once."""
    X = problem.inputs
    gram = X.double() @ X.double().T
    inverse = torch.linalg.inv(gram + torch.eye(len(X), dtype=gram.dtype, device=gram.device)).to(X.dtype)
    gram = gram.to(X.dtype)
    W = A = X.new_zeros(problem.outputs.shape[1], X.shape[1])
    B = torch.zeros_like(problem.outputs)
    for _ in range(iterations):
        level = A.abs().flatten().kthvalue(A.numel() - k).values  # k magnitudes exceed it
        W = A - A.clamp(-level, level) if penalty == "l1" else torch.where(A.abs() > level, A, 0)
        Z = B - problem.off(B) / 2
        P, Q = 2 * W - A, 2 * Z - B
        on_Z = inverse @ (X @ P.T + gram @ Q)
        on_W = P + (Q - on_Z).T @ X
        A, B = A + on_W - W, B + on_Z - Z
    return W


def _refit(problem: _Problem, weight: Tensor, mask: Tensor, iterations: int) -> Tensor:
    """The distance lowered over the weights of ``mask`` by accelerated gradients; ``weight`` itself where that failed."""
    X = problem.inputs
    step = 1 / float(torch.linalg.eigvalsh(X.double() @ X.double().T)[-1])
    now, ahead, t = weight, weight, 1.0
    for _ in range(iterations):
        new = (ahead - step * (problem.off(X @ ahead.T).T @ X)).masked_fill(~mask, 0)
        t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
        now, ahead, t = new, new + (t - 1) / t_new * (new - now), t_new
    return min(weight, now, key=problem.error)


def _check(
    weight: Tensor, bias: Tensor | None, inputs: Tensor, outputs: Tensor, k: int, activation: str, penalty: str, iterations: int
) -> None:
    wrong = []
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be a floating-point matrix [out, in], got {weight.dtype} {list(weight.shape)}")
    out, n = weight.shape
    if bias is not None and bias.shape != (out,):
        wrong.append(f"bias is {list(bias.shape)}, expected [{out}]")
    if inputs.dim() != 2 or inputs.shape[1] != n or len(inputs) == 0:
        wrong.append(f"inputs are {list(inputs.shape)}, expected [samples, {n}] with at least one")
    if outputs.shape != (len(inputs), out):
        wrong.append(f"outputs are {list(outputs.shape)}, expected [{len(inputs)}, {out}]")
    for name, t in (("weight", weight), ("bias", bias), ("inputs", inputs), ("outputs", outputs)):
        if t is not None and not t.isfinite().all():
            wrong.append(f"{name} must be finite, it holds NaN or infinity")
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= weight.numel():
        wrong.append(f"k must be in 0..{weight.numel()}, got {k!r}")
    if activation not in ("relu", "identity"):
        wrong.append(f"activation must be 'relu' or 'identity', got {activation!r}")
    if penalty not in ("l1", "l0"):
        wrong.append(f"penalty must be 'l1' or 'l0', got {penalty!r}")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        wrong.append(f"iterations must be at least 1, got {iterations!r}")
    if wrong:
        raise ValueError("; ".join(wrong))
