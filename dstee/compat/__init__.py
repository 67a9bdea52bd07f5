"""Swap-in faces of other sparse training libraries, on the kernels of this one: change one import, or :func:`patch`."""

from dstee.compat._patch import patch as patch
from dstee.compat._patch import unpatch as unpatch
