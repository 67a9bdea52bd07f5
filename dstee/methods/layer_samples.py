"""What layers are given and what they give, on a few batches: the data of methods that prune layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

__all__ = ["LayerSamples", "observe", "patches"]

_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


@dataclass(eq=False)
class LayerSamples:
    """Of one weight: ``inputs``, for each group of its units the rows [samples, in] that it multiplies, and its ``outputs``
    [samples, out], with ``bias`` [out], before any activation. ``relu``: relu takes the outputs, nothing else was seen to."""

    inputs: list[Tensor]
    outputs: Tensor
    bias: Tensor | None
    relu: bool


@dataclass(eq=False)
class _Seen:
    """Calls of one module so far."""

    inputs: list[list[Tensor]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    takers: set[bool] = field(default_factory=set)
    """Whether what took an output was relu."""

    @property
    def rows(self) -> int:
        return sum(map(len, self.outputs))


@torch.no_grad()
def observe(
    model: nn.Module, weights: Mapping[str, Tensor], forwards: Iterable[Callable[[], Any]], samples: int
) -> dict[str, LayerSamples]:
    """Runs ``forwards``, in eval mode, until each layer has ``samples`` rows or they end; more rows are thinned evenly.

    Args:
        model: whose modules are observed; their modes are put back.
        weights: the parameters to observe by name. Linear layers and convolutions are; others, those of modules that the
            forwards do not call and those that several modules share are left out of the result.
        forwards: each runs the model on a batch.
        samples: rows wanted of each layer; a row is an input vector, of a convolution what one place of the output sees.
    """
    named = {id(p): name for name, p in weights.items()}
    modules: dict[str, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, (nn.Linear, _ConvNd)) and not isinstance(module, _ConvTransposeNd) and id(module.weight) in named:
            modules.setdefault(named[id(module.weight)], []).append(module)
    seen = {name: _Seen() for name, users in modules.items() if len(users) == 1}
    watch = _ReluWatch()

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            calls = seen[name]
            x, y = args[0], output
            if isinstance(module, _ConvNd):
                y = (y if y.dim() == len(module.kernel_size) + 2 else y.unsqueeze(0)).movedim(1, -1)
            y = y.reshape(-1, y.shape[-1])
            rows = _spread(len(y), samples, y.device)
            calls.inputs.append(patches(module, x, rows) if isinstance(module, _ConvNd) else [x.reshape(-1, x.shape[-1])[rows]])
            calls.outputs.append(y[rows])  # copies, as the inputs: the model may write into both
            watch.outputs[id(output)] = output, calls.takers

        return hook

    modes = [(module, module.training) for module in model.modules()]
    handles = [modules[name][0].register_forward_hook(note(name)) for name in seen]
    try:
        model.eval()
        for forward in forwards:
            with watch:
                forward()
            watch.outputs.clear()
            if all(calls.rows >= samples for calls in seen.values()):
                break
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return {name: _joined(calls, modules[name][0], samples) for name, calls in seen.items() if calls.rows}


def patches(module: _ConvNd, x: Tensor, rows: Tensor) -> list[Tensor]:
    """What a convolution multiplies its weight with at ``rows`` of its places, counted through the samples: for each group
    [rows, in / groups * kernel]."""
    n = len(module.kernel_size)
    x = x if x.dim() == n + 2 else x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for d in range(n):
        reach = module.dilation[d] * (module.kernel_size[d] - 1) + 1
        x = x.unfold(2 + d, reach, module.stride[d])[..., :: module.dilation[d]]
    x = x.movedim(1, 1 + n)  # samples, places, channels, kernel
    seen = x[torch.unravel_index(rows, x.shape[: 1 + n])]
    return [part.flatten(1) for part in seen.chunk(module.groups, 1)]


class _ReluWatch(TorchFunctionMode):
    """Notices what takes the outputs of observed modules, be it a module or a function."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[Tensor, set[bool]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):  # not a look at a shape
            for argument in (*args, *kwargs.values()):
                for one in argument if isinstance(argument, (list, tuple)) else (argument,):
                    if id(one) in self.outputs:
                        self.outputs[id(one)][1].add(func in _RELU)
            if func in _RELU:
                self.outputs.pop(id(result), None)  # in place: it is the activation's output from now on
        return result


def _spread(n: int, most: int, device: torch.device) -> Tensor:
    """Indices of at most ``most`` of ``n`` rows, evenly spread."""
    return torch.arange(min(n, most), device=device) * n // max(min(n, most), 1)


def _joined(calls: _Seen, module: nn.Module, samples: int) -> LayerSamples:
    keep = _spread(calls.rows, samples, calls.outputs[0].device)
    inputs = [torch.cat(groups)[keep] for groups in zip(*calls.inputs, strict=True)]
    bias = None if module.bias is None else module.bias.detach()  # type: ignore[operator]
    return LayerSamples(inputs, torch.cat(calls.outputs)[keep], bias, calls.takers == {True})
