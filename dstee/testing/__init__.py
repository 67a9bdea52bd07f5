"""What tests and the bench share: cases, their comparison bit for bit, every way to run an op on this machine; and
:func:`check_method` for authors of own methods."""

from dstee.testing.cases import DTYPES as DTYPES
from dstee.testing.cases import FAMILIES as FAMILIES
from dstee.testing.cases import LARGE_SIZES as LARGE_SIZES
from dstee.testing.cases import ROUNDS as ROUNDS
from dstee.testing.cases import SIZES as SIZES
from dstee.testing.cases import Case as Case
from dstee.testing.cases import duplicate as duplicate
from dstee.testing.cases import geometry as geometry
from dstee.testing.cases import make_case as make_case
from dstee.testing.cases import place as place
from dstee.testing.cases import random_counters as random_counters
from dstee.testing.cases import random_mask as random_mask
from dstee.testing.cases import values as values
from dstee.testing.compare import assert_same_bits as assert_same_bits
from dstee.testing.configurations import Configuration as Configuration
from dstee.testing.configurations import configurations as configurations
from dstee.testing.configurations import native_isas as native_isas
from dstee.testing.method_check import check_method as check_method

__all__ = [
    "DTYPES",
    "FAMILIES",
    "LARGE_SIZES",
    "ROUNDS",
    "SIZES",
    "Case",
    "Configuration",
    "assert_same_bits",
    "check_method",
    "configurations",
    "duplicate",
    "geometry",
    "make_case",
    "native_isas",
    "place",
    "random_counters",
    "random_mask",
    "values",
]
