"""Which parameters of a model become sparse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import Tensor, nn

from dstee.parameter_names import plain_modules

__all__ = ["Candidate", "Predicate", "Rule", "Rules", "candidates", "is_lazy", "select"]

Predicate = Callable[[str, nn.Module, nn.Parameter], bool]
Rule: TypeAlias = str | type | Predicate
Rules: TypeAlias = Rule | Sequence[Rule | Sequence[Rule]] | None

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # out_proj is a Linear


@dataclass(frozen=True)
class Candidate:
    """A parameter under its first name, and every (module name, module, attribute) that holds it."""

    name: str
    param: nn.Parameter
    owners: tuple[tuple[str, nn.Module, str], ...]

    def names(self) -> list[str]:
        return [f"{module_name}.{attribute}".lstrip(".") for module_name, _, attribute in self.owners]


def candidates(model: nn.Module) -> list[Candidate]:
    """Every parameter of ``model`` once, in the order of its first name; names are those of the model without wrappers."""
    owners: dict[int, list[tuple[str, nn.Module, str]]] = {}
    params: dict[int, tuple[str, nn.Parameter]] = {}
    for module_name, _, module in plain_modules(model):
        for attribute, p in module._parameters.items():
            if p is not None:
                params.setdefault(id(p), (f"{module_name}.{attribute}".lstrip("."), p))
                owners.setdefault(id(p), []).append((module_name, module, attribute))
    return [Candidate(name, p, tuple(owners[key])) for key, (name, p) in params.items()]


def select(model: nn.Module, include: Rules, exclude: Rules) -> list[Candidate]:
    """The parameters that :func:`dstee.sparsify` makes sparse.

    Raises:
        TypeError: a rule is neither a type, a name pattern nor a function.
        ValueError: a name pattern matches nothing, or nothing is left to be sparse.
    """
    found = candidates(model)
    modules = {name: module for name, _, module in plain_modules(model)}
    included = [_included(rule, found) for rule in _rules("include", include)]
    excluded = [_excluded(rule, found, modules) for rule in _rules("exclude", exclude)]
    chosen = [
        c
        for c in found
        if (_by_default(c) or any(c.name in names for names in included)) and not any(c.name in names for names in excluded)
    ]
    chosen = [c for c in chosen if is_lazy(c.param) or c.param.numel()]
    if not chosen:
        kinds = sorted({type(module).__name__ for module in modules.values()})
        raise ValueError(
            "nothing to make sparse: no Linear, convolution or attention weight is left after include and exclude; "
            f"the model has {', '.join(kinds)}"
        )
    return chosen


def is_lazy(p: Tensor) -> bool:
    """A lazy module's parameter before its first batch has no shape."""
    return isinstance(p, nn.parameter.UninitializedParameter)


def _by_default(c: Candidate) -> bool:
    """A weight tied to an embedding is an embedding: every owner must agree."""

    def eligible(module: nn.Module, attribute: str) -> bool:
        if isinstance(module, nn.MultiheadAttention):
            return attribute in _ATTENTION
        return isinstance(module, (nn.Linear, *_CONV)) and attribute == "weight"

    return all(eligible(module, attribute) for _, module, attribute in c.owners)


def _rules(argument: str, rules: Rules) -> list[Rule]:
    """Flattens lists and tuples of rules."""
    if rules is None:
        return []
    if isinstance(rules, (list, tuple, set, frozenset)):
        return [rule for entry in rules for rule in _rules(argument, entry)]
    if isinstance(rules, str) or callable(rules):
        return [rules]
    raise TypeError(
        f"{argument} takes module types, name patterns and functions (name, module, parameter) -> bool, "
        f"got {type(rules).__name__}"
    )


def _holds(rule: Predicate, c: Candidate) -> bool:
    return any(rule(name, module, c.param) for name, (_, module, _) in zip(c.names(), c.owners, strict=True))


def _included(rule: Rule, found: list[Candidate]) -> set[str]:
    """Names that ``rule`` adds: the weights of matching modules, or parameters by name; biases and other vectors never."""
    matrices = [c for c in found if not is_lazy(c.param) and c.param.dim() > 1]
    if isinstance(rule, str):
        names = {
            c.name
            for c in matrices
            for name, (module_name, _, attribute) in zip(c.names(), c.owners, strict=True)
            if fnmatchcase(name, rule) or (fnmatchcase(module_name, rule) and "weight" in attribute)
        }
        if not names:
            raise ValueError(f"include pattern {rule!r} matches no parameter with two or more dimensions")
        return names
    if isinstance(rule, type):
        owned = [c for c in found if any(isinstance(module, rule) for _, module, _ in c.owners)]
        names = {c.name for c in matrices for _, module, a in c.owners if isinstance(module, rule) and "weight" in a}
        if owned and not names:
            raise ValueError(f"include type {rule.__name__} has no weight with two or more dimensions in this model")
        return names
    return {c.name for c in matrices if _holds(rule, c)}


def _excluded(rule: Rule, found: list[Candidate], modules: dict[str, nn.Module]) -> set[str]:
    """Names that ``rule`` keeps dense: parameters that match, and everything inside matching modules."""
    if not isinstance(rule, (str, type)):
        return {c.name for c in found if _holds(rule, c)}
    if isinstance(rule, type):
        inside = {name for name, module in modules.items() if isinstance(module, rule)}
    else:
        inside = {name for name in modules if name and fnmatchcase(name, rule)}
    names = {
        c.name
        for c in found
        for name, (module_name, _, _) in zip(c.names(), c.owners, strict=True)
        if _ancestors(module_name) & inside or (isinstance(rule, str) and fnmatchcase(name, rule))
    }
    if isinstance(rule, str) and not names:
        raise ValueError(f"exclude pattern {rule!r} matches no parameter and no module of the model")
    return names


def _ancestors(module_name: str) -> set[str]:
    """The module itself, those around it, and the model ("")."""
    parts = module_name.split(".")
    return {".".join(parts[:i]) for i in range(len(parts) + 1)}
