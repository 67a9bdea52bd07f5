"""GraNet's initial masks for a trained network: its weights pruned once, and as many regrown by a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dstee.compat.plain_masks import count_kept, drop_grow
from dstee.layer_batch import count_active
from dstee.memory_order import pack_like, unpack_like

__all__ = ["GROWING_MODES", "PRUNING_MODES", "check_gradients_given", "prune_once"]

GROWING_MODES = ("prune_and_grow_uniform", "prune_and_grow_global")
PRUNING_MODES = ("prune_uniform", "prune_global", *GROWING_MODES)


def check_gradients_given(mode: str, params: Mapping[str, Tensor], grads: object) -> None:
    """Raises ValueError unless ``grads``, GraNet's ``grad_dic``, is what ``mode`` reads: a gradient by name, or None."""
    if mode not in GROWING_MODES:
        if grads is not None:
            raise ValueError(
                f"grad_dic is given, but sparse_init {mode!r} reads no gradient: pass None, or choose "
                f"{' or '.join(GROWING_MODES)}"
            )
        return
    if not isinstance(grads, Mapping):
        raise ValueError(
            f"sparse_init {mode!r} grows by the gradient of the loss: pass grad_dic={{name: gradient}} with every masked "
            f"weight, got {type(grads).__name__}"
        )
    missing = [name for name in params if name not in grads]
    if missing:
        raise ValueError(f"grad_dic lacks the gradients of {', '.join(missing)}: every masked weight needs one")
    for name, p in params.items():
        grad = grads[name]
        if not isinstance(grad, Tensor) or grad.shape != p.shape:
            got = list(grad.shape) if isinstance(grad, Tensor) else type(grad).__name__
            raise ValueError(f"grad_dic[{name!r}] must be a tensor of shape {list(p.shape)}, got {got}")


@torch.no_grad()
def prune_once(
    mode: str, params: Mapping[str, Tensor], rate: float, grads: Mapping[str, Tensor] | None, momenta: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """Prunes ``rate`` of the weights that are not 0, and for "prune_and_grow_*" grows as many in each layer.

    "uniform" drops ``ceil(rate * nnz)`` in every layer, "global" keeps ``int(total * (1 - rate))`` over all layers, whose ties
    go to the first layer and index where the original keeps them all. What is dropped and regrown starts at 0, momentum too.

    Returns:
        bool masks by name. The weights and momenta have changed already: they are 0 where something was dropped.

    Raises:
        ValueError: ``rate`` is not in [0, 1], or nothing would be left.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"args.pruning_rate must be in [0, 1], the share of the weights to prune, got {rate}")
    weights = list(params.values())
    bits = [pack_like(p.detach(), p) for p in weights]
    nnz = count_active(bits)
    if mode.endswith("global"):
        kept = count_kept([p.detach() for p in weights], bits, int(sum(nnz) * (1 - rate)))
    else:  # rounded with the zeros, as in the original: float errors of rate * n vanish in them
        kept = [p.numel() - math.ceil(p.numel() - n + rate * n) for p, n in zip(weights, nnz, strict=True)]
    if not sum(kept):
        raise ValueError(f"args.pruning_rate {rate} leaves none of the {sum(nnz)} weights that are not 0")
    for p, momentum in zip(weights, momenta, strict=True):
        if momentum is not None:
            momentum.masked_fill_(p == 0, 0)  # what grows there starts at 0
    dropped = [before - after for before, after in zip(nnz, kept, strict=True)]
    drop_grow(
        weights,
        bits,
        dropped,
        k_grow=dropped if mode in GROWING_MODES else [0] * len(weights),
        momenta=momenta,
        grow_signal=[grads[name] for name in params] if grads is not None else None,
        grow_seeds=[0] * len(weights) if grads is None else None,
        reset_regrown=True,
    )
    return {name: unpack_like(b, p) for (name, p), b in zip(params.items(), bits, strict=True)}
