"""The sparse training methods, one file each; ``registry`` holds them by key. What all share: ``base``; what an update can do:
``actions``; what hooks are told: ``context``."""

from dstee.methods.actions import Action as Action
from dstee.methods.actions import KeepGlobal as KeepGlobal
from dstee.methods.actions import Project as Project
from dstee.methods.actions import Random as Random
from dstee.methods.actions import SetDensity as SetDensity
from dstee.methods.actions import Swap as Swap
from dstee.methods.admm import ADMM as ADMM
from dstee.methods.base import Method as Method
from dstee.methods.base import Order as Order
from dstee.methods.context import Start as Start
from dstee.methods.context import Step as Step
from dstee.methods.context import Update as Update
from dstee.methods.context import growth_seeds as growth_seeds
from dstee.methods.deepr import DeepR as DeepR
from dstee.methods.dsr import DSR as DSR
from dstee.methods.dst_ee import DSTEE as DSTEE
from dstee.methods.gap import GaP as GaP
from dstee.methods.gmp import GMP as GMP
from dstee.methods.granet import GraNet as GraNet
from dstee.methods.grasp import GraSP as GraSP
from dstee.methods.mest import MEST as MEST
from dstee.methods.one_shot import OneShot as OneShot
from dstee.methods.presets import PRESETS as PRESETS
from dstee.methods.presets import Preset as Preset
from dstee.methods.presets import preset as preset
from dstee.methods.registry import METHODS as METHODS
from dstee.methods.registry import find_method as find_method
from dstee.methods.registry import known_methods as known_methods
from dstee.methods.registry import method_from_dict as method_from_dict
from dstee.methods.registry import register as register
from dstee.methods.rigl import RigL as RigL
from dstee.methods.sis import SIS as SIS
from dstee.methods.snfs import SNFS as SNFS
from dstee.methods.snip import SNIP as SNIP
from dstee.methods.sparse_evolution import SET as SET
from dstee.methods.static import Static as Static
from dstee.methods.synflow import SynFlow as SynFlow

__all__ = [
    "ADMM",
    "DSR",
    "DSTEE",
    "GMP",
    "MEST",
    "METHODS",
    "PRESETS",
    "SET",
    "SIS",
    "SNFS",
    "SNIP",
    "Action",
    "DeepR",
    "GaP",
    "GraNet",
    "GraSP",
    "KeepGlobal",
    "Method",
    "OneShot",
    "Order",
    "Preset",
    "Project",
    "Random",
    "RigL",
    "SetDensity",
    "Start",
    "Static",
    "Step",
    "Swap",
    "SynFlow",
    "Update",
    "find_method",
    "growth_seeds",
    "known_methods",
    "method_from_dict",
    "preset",
    "register",
]  # fmt: skip
