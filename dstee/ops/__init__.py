"""Every op: its schema, checks and public function, one file an op. A backend implements the schemas and checks nothing.

The public functions take lists with one tensor per layer, so that one call serves the whole model. "Flat index" is the
order in memory. A sparse layer obeys one invariant, which every op keeps: weight and momentum are 0 where the mask is False.
"""

from dstee.encoding import bonus_table as bonus_table
from dstee.ops._count_below import count_below as count_below
from dstee.ops._count_outside import count_outside as count_outside
from dstee.ops._counts import count_active as count_active
from dstee.ops._counts import count_explored as count_explored
from dstee.ops._counts import decode_counts as decode_counts
from dstee.ops._counts import encode_counts as encode_counts
from dstee.ops._drop_grow import drop_grow_ as drop_grow_
from dstee.ops._global_keep import global_keep_ as global_keep_
from dstee.ops._growth_scale import growth_scale as growth_scale
from dstee.ops._hashed_noise import hashed_noise as hashed_noise
from dstee.ops._key_histogram import key_histogram as key_histogram
from dstee.ops._masked_sgd import masked_sgd_ as masked_sgd_
from dstee.ops._pack_mask import pack_mask as pack_mask
from dstee.ops._pack_mask import unpack_mask as unpack_mask
from dstee.sgd_rule import SGDRule as SGDRule

__all__ = [
    "SGDRule",
    "bonus_table",
    "count_active",
    "count_below",
    "count_explored",
    "count_outside",
    "decode_counts",
    "drop_grow_",
    "encode_counts",
    "global_keep_",
    "growth_scale",
    "hashed_noise",
    "key_histogram",
    "masked_sgd_",
    "pack_mask",
    "unpack_mask",
]
