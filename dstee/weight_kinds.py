"""What the weights of a module are: how they lie, and whether zeros in a parameter are zeros in what the module computes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = [
    "Computed",
    "computed",
    "has_own_forward",
    "is_broadcast",
    "is_conv1d",
    "is_embedding",
    "is_lazy",
    "is_norm",
    "is_recurrent",
    "is_stack",
    "is_standard",
    "outputs_of_stack",
]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # out_proj is a Linear
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_PARAMETRIZE = "parametrizations"


def is_lazy(p: Tensor) -> bool:
    """A lazy module's parameter before its first batch has no shape."""
    return isinstance(p, nn.parameter.UninitializedParameter)


def is_conv1d(module: nn.Module) -> bool:
    """``transformers.pytorch_utils.Conv1D``: a linear layer with weights [in, out], known by name, ``nf`` and shape.

    transformers is no dependency, so a class is taken for it that is called Conv1D, has ``nf`` outputs and a weight [in, nf].
    """
    weight = module._parameters.get("weight")
    return (
        type(module).__name__ == "Conv1D"
        and weight is not None
        and weight.dim() == 2
        and getattr(module, "nf", None) == weight.shape[1]
    )


def is_standard(module: nn.Module, attribute: str) -> bool:
    """A weight of Linear, a convolution, MultiheadAttention or transformers' Conv1D."""
    if isinstance(module, nn.MultiheadAttention):
        return attribute in _ATTENTION
    return attribute == "weight" and (isinstance(module, (nn.Linear, *_CONV)) or is_conv1d(module))


def is_embedding(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS)


def is_recurrent(module: nn.Module) -> bool:
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase))


def is_stack(module: nn.Module, p: Tensor) -> bool:
    """Matrices of several experts in one parameter, [experts, in, out]: three dimensions in a module that is not torch's."""
    return p.dim() == 3 and not isinstance(module, (nn.Linear, *_CONV, nn.Bilinear)) and not _is_torchs_layer(module)


def outputs_of_stack(module: nn.Module) -> int:
    """The dimension of a stack's outputs: the last, as ``torch.bmm`` has it, or the second where ``is_transposed`` is False.

    transformers sets ``is_transposed`` on its experts: True is [experts, in, out], False [experts, out, in].
    """
    return 1 if getattr(module, "is_transposed", True) is False else 2


def is_broadcast(module: nn.Module, p: Tensor) -> bool:
    """No matrix in spite of its dimensions: one vector, or a table [1, ...] that a module adds (tokens, positions)."""
    return not _is_torchs_layer(module) and (p.numel() == max(p.shape) or (p.dim() > 2 and p.shape[0] == 1))


def has_own_forward(module: nn.Module) -> bool:
    """A subclass of a torch layer whose ``forward`` is not torch's: it may compute with another weight than the parameter."""
    if not isinstance(module, (nn.Linear, *_CONV, nn.MultiheadAttention)):
        return False
    for method in ("forward", "_conv_forward"):
        owner = next((cls for cls in type(module).__mro__ if method in vars(cls)), nn.Module)
        if not _is_torchs(owner):
            return True
    return False


def _is_torchs(cls: type) -> bool:
    """torch's own class, or the one that ``torch.nn.utils.parametrize`` puts in the place of another."""
    return cls.__module__.split(".")[0] == "torch"


def _is_torchs_layer(module: nn.Module) -> bool:
    """A module of torch that knows what its parameters are for; its lists and dicts do not."""
    return _is_torchs(type(module)) and not isinstance(module, (nn.ParameterList, nn.ParameterDict))


class Computed(NamedTuple):
    """A weight that a module computes from parameters, and how to make it a parameter again."""

    name: str
    remedy: str


def computed(module_name: str, module: nn.Module, attribute: str) -> Computed | None:
    """The weight that is computed from this parameter (alone or with others), None where the module uses it as it is."""
    path = module_name.split(".") if module_name else []
    if _PARAMETRIZE in path[:-1]:
        i = path.index(_PARAMETRIZE)
        return Computed(".".join([*path[:i], path[i + 1]]), "call torch.nn.utils.parametrize.remove_parametrizations first")
    kind = type(module).__name__
    if attribute == "weight" and isinstance(module, _CONV) and ("StdConv" in kind or "WSConv" in kind):
        return Computed(".".join([*path, "standardized weight"]), "use a convolution without standardization")
    base, _, suffix = attribute.rpartition("_")
    if suffix not in ("g", "v", "orig") or base in module._parameters or not isinstance(getattr(module, base, None), Tensor):
        return None
    name = ".".join([*path, base])
    if suffix in ("g", "v") and {f"{base}_g", f"{base}_v"} <= module._parameters.keys():
        return Computed(name, "call torch.nn.utils.remove_weight_norm first")
    if suffix == "orig":
        pruned = f"{base}_mask" in module._buffers
        return Computed(name, f"call torch.nn.utils.{'prune.remove' if pruned else 'remove_spectral_norm'} first")
    return None
