"""rigl-torch (0.5.2): ``from dstee.compat.rigl_torch import RigLScheduler`` and keep the script."""

from dstee.compat.rigl_torch.scheduler import DenseGradHook, RigLScheduler

__all__ = ["DenseGradHook", "RigLScheduler"]
