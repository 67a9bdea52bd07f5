"""Other sparse training libraries' interfaces on the kernels of this one: change one import, or :func:`patch` a live object."""

from dstee.compat.patching import patch, unpatch

__all__ = ["patch", "unpatch"]
