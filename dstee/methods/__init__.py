"""The sparse training methods, one file each; ``registry`` holds them by key. What all share: ``base``."""

from dstee.methods.base import Method as Method
from dstee.methods.base import Order as Order
from dstee.methods.dst_ee import DSTEE as DSTEE
from dstee.methods.registry import METHODS as METHODS
from dstee.methods.registry import method_from_dict as method_from_dict
from dstee.methods.registry import register as register
from dstee.methods.rigl import RigL as RigL
from dstee.methods.sparse_evolution import SET as SET
from dstee.methods.static import Static as Static

__all__ = ["DSTEE", "METHODS", "SET", "Method", "Order", "RigL", "Static", "method_from_dict", "register"]
