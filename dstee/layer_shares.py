"""Layers that are cut among ranks: what falls to this rank of an update of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from dstee.distributed import agree
from dstee.distributed.ranks import exchange
from dstee.layer_batch import LayerBatch
from dstee.methods import Method
from dstee.sparse_layer import SparseLayer

__all__ = ["agree_on_shares", "is_cut", "refuse_parts", "whole_numbers"]


def is_cut(layers: Iterable[SparseLayer]) -> bool:
    """Whether any of ``layers`` is cut among ranks."""
    return any(layer.sharding is not None for layer in layers)


def refuse_parts(method: Method) -> None:
    """Raises ValueError where ``method`` looks at whole weights, which nobody has where they are cut among ranks."""
    if method.needs_whole_weights:
        raise ValueError(
            f"{method.name} looks at whole weights, but they are cut among ranks: make the model sparse before it is sharded, "
            "or use a method that ranks the weights of each layer (DSTEE, RigL, SET)"
        )


def whole_numbers(
    layers: Sequence[SparseLayer], k: Sequence[int] | Tensor, k_grow: Sequence[int] | Tensor | None, regrow: bool
) -> tuple[list[int], list[int] | None]:
    """``k`` and ``k_grow`` of whole layers on the host; tensors are clipped and lists refused as by ``drop_grow_``.

    Raises:
        ValueError: a number in a list is more than the layer has.
    """
    drop, grow = _numbers("k", k, [layer.nnz for layer in layers], layers), None
    if k_grow is not None:
        room = [layer.numel - layer.nnz + (n if regrow else 0) for layer, n in zip(layers, drop, strict=True)]
        grow = _numbers("k_grow", k_grow, room, layers)
    return drop, grow


def _numbers(what: str, given: Sequence[int] | Tensor, most: list[int], layers: Sequence[SparseLayer]) -> list[int]:
    if isinstance(given, Tensor):
        return [min(max(n, 0), bound) for n, bound in zip(given.tolist(), most, strict=True)]
    for n, bound, layer in zip(given, most, layers, strict=True):
        if not 0 <= n <= bound:
            raise ValueError(f"{what} of {layer.name} must be in 0..{bound}, got {n}")
    return list(given)


def agree_on_shares(
    batch: LayerBatch,
    k: Sequence[int],
    k_grow: Sequence[int] | None,
    *,
    asked: Sequence[int] | Tensor | None = None,
    bonus: Tensor | None,
    round: int,
    grow_seeds: list[int] | None,
    regrow: bool,
    drop_scores: list[Tensor] | None = None,
    grow_signal: list[Tensor] | None = None,
) -> agree.Shares:
    """What this rank drops and grows, where whole layers drop ``k`` and grow ``k_grow``, None for as many as they drop.

    All ranks that hold parts of these layers come here together, after the step. ``asked``: what grows, before it was clipped,
    where that is another number; the bonus is scaled by it. The other arguments are those of
    :func:`dstee.ops.drop_grow_`, and so is what ``k`` means: without ``k_grow`` and ``regrow`` it is clipped to the inactive
    weights.
    """
    wanted = list(k)
    if k_grow is None and not regrow:
        wanted = [min(number, layer.numel - layer.nnz) for number, layer in zip(k, batch.layers, strict=True)]
    asked = (k if k_grow is None else k_grow) if asked is None else asked
    scale_k = asked.tolist() if isinstance(asked, Tensor) else list(asked)
    ranked = agree.Ranked(
        batch.params, batch.mask_bits, [layer.where for layer in batch.layers], batch.grads or None, batch.counts or None,
        bonus, round, drop_scores, grow_signal, grow_seeds, regrow, scale_k=scale_k,
    )  # fmt: skip
    grown = wanted if k_grow is None else list(k_grow)
    return exchange(agree.shares(ranked, wanted, grown), [layer.holders for layer in batch.layers])
