"""The mask update as one writes it with torch's own operations: top-k, sorts, thresholds."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from .. import expected
from ..expected import Expected
from ..session import Contender, Session, Setting, check_update, copy_into
from .registry import register

__all__ = ["FullSort", "KthValue", "TopK", "TorchUpdate", "top_k_update"]


class TorchUpdate(Session):
    """An update of bool or float masks, layer by layer."""

    mask_dtype = torch.bool

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.masks = [m.to(self.mask_dtype, copy=True) for m in setting.before.masks]
        self.N = [n.clone() for n in setting.N]

    def restore(self) -> None:
        copy_into(self.setting.work.params, self.setting.before.params)
        copy_into(self.masks, self.setting.before.masks)
        copy_into(self.N, self.setting.N)

    @torch.no_grad()
    def call(self) -> None:
        work = self.setting.work
        for w, g, mask, N, k in zip(work.params, work.grads, self.masks, self.N, work.k, strict=True):
            if k:
                self.layer(w.view(-1), g.view(-1), mask.view(-1), N.view(-1), k)

    @abstractmethod
    def layer(self, w: Tensor, g: Tensor, mask: Tensor, N: Tensor, k: int) -> None:
        """Updates one flat layer in place."""

    @abstractmethod
    def outcome(self) -> list[Expected]:
        """Every layer after the update, by its own rule."""

    def outputs(self) -> list[Tensor]:
        return self.masks + self.setting.work.params

    def check(self) -> str | None:
        return check_update(self.setting, self.outcome(), self.masks, self.setting.work.params)


def top_k_update(w: Tensor, g: Tensor, mask: Tensor, N: Tensor, k: int, bonus: Tensor) -> None:
    """DST-EE with torch.topk: which of equal weights go or come is left to chance."""
    mask.index_fill_(0, torch.topk(w.abs().masked_fill(~mask, torch.inf), k, largest=False).indices, False)
    score = (g.float().abs() + bonus[N]).masked_fill(mask, -torch.inf)
    mask.index_fill_(0, torch.topk(score, k).indices, True)
    w.mul_(mask)
    N.add_(mask)


class TopK(TorchUpdate):
    def layer(self, w: Tensor, g: Tensor, mask: Tensor, N: Tensor, k: int) -> None:
        top_k_update(w, g, mask, N, k, self.setting.bonus)

    def outcome(self) -> list[Expected]:
        return self.setting.outcome(expected.dst_ee_by_score)


class FullSort(TorchUpdate):
    """The recipe of the ITOP and GraNet code: a sort of |w| for a threshold, a sort of |g| to grow, float masks."""

    mask_dtype = torch.float32

    def layer(self, w: Tensor, g: Tensor, mask: Tensor, N: Tensor, k: int) -> None:
        active = int(mask.sum().item())
        ordered = torch.sort(w.abs()).values
        kept = (w.abs() > ordered[mask.numel() - active + k - 1]).float()
        removed = active - int(kept.sum().item())
        order = torch.sort((g * (kept == 0).float()).abs(), descending=True).indices
        kept[order[:removed]] = 1.0
        mask.copy_(kept)
        w.mul_(mask)

    def outcome(self) -> list[Expected]:
        return self.setting.outcome(expected.rigl_by_threshold)


class KthValue(TorchUpdate):
    def layer(self, w: Tensor, g: Tensor, mask: Tensor, N: Tensor, k: int) -> None:
        size = w.abs()
        mask.logical_and_(size > torch.kthvalue(size[mask], k).values)
        score = (g.float().abs() + self.setting.bonus[N]).masked_fill(mask, -torch.inf)
        mask.logical_or_(score >= torch.kthvalue(score, score.numel() - k + 1).values)
        w.mul_(mask)
        N.add_(mask)

    def outcome(self) -> list[Expected]:
        return self.setting.outcome(expected.dst_ee_by_thresholds)


register(
    Contender("torch.topk", "drop_grow", "DST-EE, ties to chance", TopK, step="SGD foreach + masks"),
    Contender("kthvalue", "drop_grow", "DST-EE, all that tie at a threshold", KthValue, step="SGD foreach + masks"),
    Contender("ITOP sorts", "drop_grow", "RigL as ITOP and GraNet code it: two sorts, float masks; the masks alone", FullSort,
              step="ITOP apply_mask"),
)  # fmt: skip
