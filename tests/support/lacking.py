"""Which ops, and which of their arguments, a configuration of the tests has no kernel for yet."""

from __future__ import annotations

from dstee.backends import native
from dstee.backends import triton as triton_backend
from dstee.testing import Configuration

_NATIVE = {"native": "cpu", "cuda-host": "cuda", "native-cuda": "cuda"}


def lacks(configuration: Configuration, op: str, *options: str) -> bool:
    """Whether ``configuration`` refuses ``op``, or one of the ``options`` of it, where it runs other ops."""
    if configuration.backend in _NATIVE:
        device = _NATIVE[configuration.backend]
        return op in native.NO_KERNEL[device] or not native.NO_OPTION[device].get(op, frozenset()).isdisjoint(options)
    if configuration.backend.startswith("triton"):
        return op not in triton_backend.MODULES or not triton_backend.NO_OPTION.get(op, frozenset()).isdisjoint(options)
    return False
