"""Dynamic sparse training: DST-EE and its rivals as exact, fused PyTorch operations."""

from typing import TYPE_CHECKING, Any

from dstee import _lazy
from dstee import distributed as distributed
from dstee import metrics as metrics
from dstee import ops as ops
from dstee._files import CheckpointError as CheckpointError
from dstee.allocation import allocate as allocate
from dstee.backends import use_backend as use_backend
from dstee.encoding import bonus_table as bonus_table
from dstee.methods import ADMM as ADMM
from dstee.methods import DSR as DSR
from dstee.methods import DSTEE as DSTEE
from dstee.methods import GMP as GMP
from dstee.methods import MEST as MEST
from dstee.methods import SET as SET
from dstee.methods import SIS as SIS
from dstee.methods import SNFS as SNFS
from dstee.methods import SNIP as SNIP
from dstee.methods import DeepR as DeepR
from dstee.methods import GaP as GaP
from dstee.methods import GraNet as GraNet
from dstee.methods import GraSP as GraSP
from dstee.methods import OneShot as OneShot
from dstee.methods import RigL as RigL
from dstee.methods import Static as Static
from dstee.methods import SynFlow as SynFlow
from dstee.methods import preset as preset
from dstee.methods import register as register
from dstee.ops import SGDRule as SGDRule
from dstee.optim import SparseSGD as SparseSGD
from dstee.schedule import ConstantDrop as ConstantDrop
from dstee.schedule import CosineDrop as CosineDrop
from dstee.schedule import LinearDrop as LinearDrop
from dstee.schedule import UpdateSchedule as UpdateSchedule
from dstee.schedule import register_drop as register_drop
from dstee.score_masks import masks_from_scores as masks_from_scores
from dstee.soft_sparsification import SoftThreshold as SoftThreshold
from dstee.sparse_model import SparseModel as SparseModel
from dstee.sparsification import sparsify as sparsify

__all__ = [
    "ADMM",
    "DSR",
    "DSTEE",
    "GMP",
    "MEST",
    "SET",
    "SIS",
    "SNFS",
    "SNIP",
    "CheckpointError",
    "ConstantDrop",
    "CosineDrop",
    "DeepR",
    "GaP",
    "GraNet",
    "GraSP",
    "LinearDrop",
    "OneShot",
    "RigL",
    "SGDRule",
    "SoftThreshold",
    "SparseModel",
    "SparseSGD",
    "Static",
    "SynFlow",
    "UpdateSchedule",
    "__version__",
    "allocate",
    "bonus_table",
    "distributed",
    "masks_from_scores",
    "metrics",
    "ops",
    "preset",
    "register",
    "register_drop",
    "sparsify",
    "use_backend",
]

__version__ = "0.1.0"

if not TYPE_CHECKING:  # a type checker is to miss what is not there

    def __getattr__(name: str) -> Any:
        return _lazy.submodule(__name__, name, ("compat", "integrations", "testing", "training_cost"))
