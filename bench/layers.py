"""The layers that are timed: shapes by name, by size or of the user's own model, and random state for them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dstee import ops
from dstee._console import UsageError
from dstee._files import is_shape, open_regular, parse_json
from dstee.encoding import unpack_bits
from dstee.experiments.references import load_reference
from dstee.selection import select
from dstee.weight_kinds import is_lazy

from .shapes import SHAPES, Shape

__all__ = ["DTYPES", "ROUND", "Layers", "by_name", "make_layers", "masks_of", "of_model", "runs_of"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROUND = 5  # mask updates behind the counters of the cases
LARGEST_HEADER = 100_000_000


@dataclass
class Layers:
    """The state of a sparse model: one tensor per layer in each list. ``masks`` are bool, ``k`` weights are swapped."""

    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor]
    masks: list[Tensor]
    mask_bits: list[Tensor]
    counts: list[Tensor]
    k: list[int]

    @property
    def n(self) -> int:
        return sum(p.numel() for p in self.params)

    @property
    def shapes(self) -> list[Shape]:
        return [tuple(p.shape) for p in self.params]

    def tensors(self) -> list[Tensor]:
        """All of them, of every list."""
        return [*self.params, *self.grads, *self.momenta, *self.masks, *self.mask_bits, *self.counts]

    def clone(self) -> Layers:
        return self._with_each(Tensor.clone)

    def to(self, device: str) -> Layers:
        return self._with_each(lambda t: t.to(device))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Layers:
        return Layers(
            params=[change(t) for t in self.params],
            grads=[change(t) for t in self.grads],
            momenta=[change(t) for t in self.momenta],
            masks=[change(t) for t in self.masks],
            mask_bits=[change(t) for t in self.mask_bits],
            counts=[change(t) for t in self.counts],
            k=list(self.k),
        )


class Random(TypedDict):
    """Where random numbers come from."""

    generator: torch.Generator
    device: str


def wanted(n: int, density: float) -> int:
    """Active weights of a layer of n weights: at least one, and int(n * (1 - sparsity)) as most libraries count."""
    return max(1, int(n * (1 - (1 - density))))


def _exact_mask(n: int, active: int, random: Random) -> Tensor:
    mask = torch.rand(n, **random) < active / n
    excess = int(mask.sum()) - active
    places = mask.nonzero().view(-1) if excess > 0 else (~mask).nonzero().view(-1)
    mask[places[torch.randperm(places.numel(), **random)[: abs(excess)]]] = excess < 0
    return mask


def make_layers(
    shapes: list[Shape], density: float, swap: float, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Layers:
    """Random state of every layer at one density, made on ``device``, whose random numbers are its own; k is ``swap`` of the
    active weights.

    Counters are as :data:`ROUND` updates may leave them: most inactive weights were never active, the others are spread.
    """
    random: Random = {"generator": torch.Generator(device).manual_seed(seed), "device": device}
    out = Layers([], [], [], [], [], [], [])
    for shape in shapes:
        n = math.prod(shape)
        active = wanted(n, density)
        mask = _exact_mask(n, active, random).view(shape)
        seen = torch.rand(shape, **random)  # below 0.8: never active; else 0..ROUND, spread evenly
        N = ((seen - 0.8).clamp_(min=0) * 5 * (ROUND + 1)).to(torch.int16).clamp_(max=ROUND)
        N = torch.where(mask, N + 1, N)
        out.masks.append(mask)
        out.params.append((torch.randn(shape, **random) * mask * 0.05).to(dtype))
        out.grads.append((torch.randn(shape, **random) * 1e-3).to(dtype))
        out.momenta.append((torch.randn(shape, **random) * mask * 1e-3).to(dtype))
        out.mask_bits.append(ops.pack_mask(mask))
        out.counts.append(ops.encode_counts(N, mask, ROUND))
        out.k.append(int(swap * active))
    return out


def masks_of(mask_bits: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
    return [unpack_bits(bits, math.prod(shape)).view(shape) for bits, shape in zip(mask_bits, shapes, strict=True)]


def runs_of(mask: Tensor, size: int) -> int:
    """Aligned runs of ``size`` neighbours that hold a True."""
    flat = pad(mask.reshape(-1), (0, -mask.numel() % size))
    return int(flat.view(-1, size).any(1).sum())


# --- which layers --------------------------------------------------------------------------------------------------------


def by_name(name: str) -> dict[str, Shape]:
    """``resnet50`` and its like, or a number of weights (``1e6``, ``25000000``) in one square-ish layer.

    Raises:
        UsageError: it is neither.
    """
    if name in SHAPES:
        return SHAPES[name]()
    try:
        n = float(name)
    except ValueError:
        raise UsageError(f"--shapes {name!r}: expected {', '.join(SHAPES)} or a number of weights such as 1e6") from None
    if not 8 <= n <= 4e9:
        raise UsageError(f"--shapes {name}: a layer has 8 to 4e9 weights")
    rows = 1 << int(math.log2(n) / 2)
    return {"weight": (rows, max(1, round(n / rows)))}


def of_model(source: str) -> dict[str, Shape]:
    """Shapes of the user's own layers: of those that sparsify would make sparse in what ``module:function`` returns, called
    without arguments (or in the module that it is); or of the weights of two dimensions and more in a state dict, a ``.pt`` or
    ``.pth`` (loaded with weights_only) or ``.safetensors`` file.

    Raises:
        UsageError: it cannot be loaded, or holds no such weight.
    """
    if not source.endswith((".pt", ".pth", ".safetensors")):
        return _of_factory(source)
    found = {name: shape for name, shape in _of_file(Path(source)).items() if len(shape) >= 2 and math.prod(shape) >= 8}
    if not found:
        raise UsageError(f"--from-model {source}: no weight of two or more dimensions in it")
    return found


def _of_file(path: Path) -> dict[str, Shape]:
    try:
        if path.suffix == ".safetensors":
            return _safetensors_shapes(path)
        state = torch.load(path, map_location="meta", weights_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, EOFError) as error:
        raise UsageError(f"--from-model {path} cannot be read: {error}") from error
    except Exception as error:  # what is not plain tensors is refused by an error class of its own
        raise UsageError(f"--from-model {path}: not a state dict of plain tensors ({type(error).__name__})") from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise UsageError(f"--from-model {path}: expected a state dict, got {type(state).__name__}")
    return {str(k): tuple(v.shape) for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()}


def _safetensors_shapes(path: Path) -> dict[str, Shape]:
    """Only the header is read: 8 bytes of its length, then JSON."""
    with open(path, "rb", opener=open_regular) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}: damaged or no safetensors file")
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = entry["shape"] if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not is_shape(shape):
            raise ValueError(f"entry {name!r} has no proper shape")
        if entry.get("dtype") in ("F32", "F16", "BF16", "F64"):
            found[name] = tuple(shape)
    return found


def _of_factory(source: str) -> dict[str, Shape]:
    """Of the weights that :func:`dstee.sparsify` would make sparse."""
    if ":" not in source:
        raise UsageError(f"--from-model {source!r}: expected module:function, or a .pt, .pth or .safetensors file")
    found = load_reference(source, "--from-model")
    try:
        model = found if isinstance(found, nn.Module) else found()
    except (Exception, SystemExit) as error:  # whatever a user's function does
        raise UsageError(f"--from-model {source}, called without arguments, raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"--from-model {source} gives a {type(model).__name__}, expected a torch.nn.Module")
    try:
        chosen = select(model, None, None).chosen
    except ValueError as error:
        raise UsageError(f"--from-model {source}: {error}") from error
    lazy = [c.name for c in chosen if is_lazy(c.param)]
    if lazy:
        raise UsageError(f"--from-model {source}: {lazy[0]} has no shape yet: call the model once before it is returned")
    return {c.name: tuple(c.param.shape) for c in chosen}
