"""Whether masks leave a network parts that nothing of the input gets through."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from dstee import weight_kinds
from dstee.selection import Candidate

__all__ = ["warn_of_dead_parts", "why_dead"]

_BY_UNIT = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink,
    nn.Softshrink, nn.Tanhshrink, nn.Threshold, _NormBase, _DropoutNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd,
    _MaxPoolNd,
)  # fmt: skip
"""What keeps its units, or channels, apart."""

Masks = Mapping[int, tuple[str, Tensor]]


def warn_of_dead_parts(
    model: nn.Module, masks: Sequence[tuple[Candidate, Tensor | None]], nnz: Sequence[int], stacklevel: int
) -> None:
    """One warning where :func:`why_dead` finds something."""
    if why := why_dead(model, masks, nnz):
        warnings.warn(
            f"a part of the network is dead from the start: {why}. Nothing of the input gets through there: choose a lower "
            "sparsity or other masks, or leave small layers dense with exclude=",
            stacklevel=stacklevel,
        )


def why_dead(model: nn.Module, masks: Sequence[tuple[Candidate, Tensor | None]], nnz: Sequence[int]) -> str:
    """In words, which sparse layers let nothing of the input through; empty where there are none.

    That are layers without an active weight, and in an ``nn.Sequential``, whose order is known, those whose active weights all
    start from units that no active weight before them reaches. Layers that something may pass in a way not known here are none.

    Args:
        masks: bool, in the shape of the weight; None of one that is cut among ranks.
        nnz: the number of active weights of each.
    """
    empty = [c.name for (c, _), n in zip(masks, nnz, strict=True) if n == 0]
    if empty:
        return f"{len(empty)} of {len(masks)} layers have no active weight and give their biases alone ({', '.join(empty)})"
    known = {
        id(module): (c.name, mask)
        for c, mask in masks
        if mask is not None
        for _, module, attribute in c.owners
        if weight_kinds.is_standard(module, attribute) and not weight_kinds.has_own_forward(module)
    }
    cut = [name for chain in _chains(model) if (name := _cut_at(chain, known)) is not None]
    return f"all active weights of {' and of '.join(cut)} start from units that no active weight before reaches" if cut else ""


def _chains(module: nn.Module) -> Iterator[nn.Sequential]:
    """The outermost modules that are a sequence of others and nothing else."""
    if _is_chain(module):
        yield module  # type: ignore[misc]  # it is one
    else:
        for child in module.children():
            yield from _chains(child)


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _flat(chain: nn.Module) -> Iterator[nn.Module]:
    for child in chain.children():
        if _is_chain(child):
            yield from _flat(child)
        else:
            yield child


def _cut_at(chain: nn.Sequential, masks: Masks) -> str | None:
    """The first layer behind which nothing depends on the input of the chain."""
    alive: Tensor | None = None  # which units do; None: it is not known
    kind: Literal["units", "images", "flat images"] = "units"
    for module in _flat(chain):
        if id(module) in masks and isinstance(module, (nn.Linear, _ConvNd)):
            name, mask = masks[id(module)]
            alive = _reached(module, mask, _inputs(module, alive, kind))
            kind = "units" if isinstance(module, nn.Linear) else "images"
            if not alive.any():
                return name
        elif isinstance(module, nn.Flatten):
            kind = "flat images" if kind == "images" else kind
        elif not isinstance(module, _BY_UNIT):
            alive = None
    return None


def _inputs(module: nn.Linear | _ConvNd, alive: Tensor | None, kind: str) -> Tensor | None:
    """What the units before it are as inputs of a layer; None where that is not sure, or all are alive."""
    if alive is None or bool(alive.all()):
        return None
    if not isinstance(module, nn.Linear):
        return alive if kind == "images" and len(alive) == module.in_channels else None
    if kind == "flat images" and module.in_features % len(alive) == 0:
        return alive.repeat_interleave(module.in_features // len(alive))
    return alive if kind == "units" and len(alive) == module.in_features else None


def _reached(module: nn.Module, mask: Tensor, inputs: Tensor | None) -> Tensor:
    """bool [units]: which outputs an active weight joins to one of the ``inputs``."""
    mask = mask if inputs is None else mask & _beside(module, mask, inputs.to(mask.device))
    if isinstance(module, _ConvTransposeNd):
        return mask.reshape(module.groups, mask.shape[0] // module.groups, mask.shape[1], -1).any(3).any(1).flatten()
    return mask.reshape(mask.shape[0], -1).any(1)


def _beside(module: nn.Module, mask: Tensor, inputs: Tensor) -> Tensor:
    """``inputs`` where the mask has the weights that start from them."""
    ones = (1,) * (mask.dim() - 2)
    if isinstance(module, _ConvTransposeNd):
        return inputs.view(-1, 1, *ones)
    if not isinstance(module, _ConvNd) or module.groups == 1:
        return inputs.view(1, -1, *ones)
    groups = module.groups
    return inputs.view(groups, -1).repeat_interleave(mask.shape[0] // groups, 0).view(mask.shape[0], -1, *ones)
