"""The masks of a model's weights, by name, and what is known about them: what all ``Masking`` classes stand on."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dstee.compat.sparselearning.masks import Masks
from dstee.sparse_layer import check_parameter

__all__ = ["MaskedModel"]

M = TypeVar("M", bound="MaskedModel")


class MaskedModel:
    """Masks and their statistics under the names that the original gives them."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.seed: int | None = None
        self.modules: list[nn.Module] = []
        self.names: list[str] = []
        self.name2zeros: dict[str, int] = {}
        self.name2nonzeros: dict[str, int] = {}
        self.num_remove: dict[str, int] = {}
        self.steps = 0
        self.round = 0
        self._masks, self._fired = Masks(), Masks()
        self.clean_versions: dict[str, int] = {}  # of the weights that are known to be 0 outside the masks

    def __deepcopy__(self: M, memo: dict[int, Any]) -> M:
        """With the model and the optimizer, copied in the same call, the copy trains on."""
        other = memo[id(self)] = object.__new__(type(self))
        for masks in (self._masks, self._fired):
            masks.whole_copy(memo)
        other.__dict__.update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return other

    @property
    def masks(self) -> Masks:
        """Name -> 0/1 float tensor; assign a mapping (a checkpoint's) to replace all masks."""
        return self._masks

    @masks.setter
    def masks(self, masks: Mapping[str, Tensor]) -> None:
        self._assign(self._masks, masks, "masks")

    @property
    def fired_masks(self) -> Masks:
        """Name -> 0/1 tensor of the weights that were ever active."""
        return self._fired

    @fired_masks.setter
    def fired_masks(self, masks: Mapping[str, Tensor]) -> None:
        self._assign(self._fired, masks, "fired_masks")

    @staticmethod
    def _assign(ours: Masks, masks: Mapping[str, Tensor], what: str) -> None:
        if masks is ours:
            return
        if set(masks) != set(ours):
            missing, unknown = sorted(set(ours) - set(masks)), sorted(set(masks) - set(ours))
            raise ValueError(f"{what} must name every masked weight once; missing: {missing}, unknown: {unknown}")
        for name, mask in masks.items():
            ours[name] = mask

    def params(self) -> dict[str, nn.Parameter]:
        """The masked weights by name."""
        return {layer.name: layer.param for layer in self._masks.layers()}

    def momentum_of(self, p: Tensor) -> Tensor | None:
        """SGD's momentum buffer of a weight, if it has one."""
        return self.optimizer.state.get(p, {}).get("momentum_buffer")

    def apply_mask(self) -> None:
        """Zeroes what lies outside the masks."""
        raise NotImplementedError

    def _add(self, module: nn.Module, names: Iterable[str]) -> None:
        """Registers weights of a module, all inactive."""
        names = list(names)
        again = [name for name in names if name in self._masks]
        if again:
            raise ValueError(f"masks for {', '.join(again)} exist already: names of several modules must differ")
        if not names:
            raise ValueError(f"{type(module).__name__} has no weight to mask")
        for name in names:  # all are looked at before the first is added
            check_parameter(name, module.get_parameter(name))
        for name in names:
            self._masks.add(name, module)
            self._fired.add(name, module)
            self.names.append(name)
        self.modules.append(module)

    def remove_weight(self, name: str) -> None:
        """Takes a weight (or the ``weight`` of a module) out of the masks; it stays as it is and trains densely."""
        found = name if name in self._masks else f"{name}.weight"
        if found not in self._masks:
            raise KeyError(f"no masked weight {name!r}, there are {', '.join(self._masks)}")
        del self._masks[found], self._fired[found]
        self.names.remove(found)

    def remove_weight_partial_name(self, partial_name: str) -> None:
        """Takes out all weights with ``partial_name`` in their name."""
        for name in [name for name in self._masks if partial_name in name]:
            self.remove_weight(name)

    def remove_type(self, nn_type: type) -> None:
        """Takes out the weights of all modules of a type."""
        for module in self.modules:
            for name, child in module.named_modules():
                if isinstance(child, nn_type) and f"{name}.weight" in self._masks:
                    self.remove_weight(f"{name}.weight")

    def _fire(self) -> None:
        for fired, layer in zip(self._fired.layers(), self._masks.layers(), strict=True):
            fired.mask_bits |= layer.mask_bits
        self._fired.replaced()
        self._fired.dtype = torch.uint8

    def fired_masks_update(self) -> tuple[dict[str, float], float]:
        """Adds the present masks to ``fired_masks``; share of weights that were ever active, per layer and in all."""
        self._fire()
        self._fired.recount()
        layers = self._fired.layers()
        return {layer.name: layer.nnz / layer.numel for layer in layers}, (
            sum(layer.nnz for layer in layers) / sum(layer.numel for layer in layers)
        )
