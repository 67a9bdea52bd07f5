"""Other people's libraries, through their own public code: one file each, skipped with a reason where not installed."""

from __future__ import annotations

from . import rigl_torch, sparsimony, torch_ao

CONTENDERS = [*rigl_torch.CONTENDERS, *sparsimony.CONTENDERS, *torch_ao.CONTENDERS]
