"""Which parameters of a model become sparse, and which stay dense for what reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeAlias

from torch import nn

from dstee import weight_kinds
from dstee.parameter_names import plain_modules
from dstee.weight_kinds import Computed, is_lazy

__all__ = ["Candidate", "LeftOut", "Predicate", "Rule", "Rules", "Selection", "candidates", "refuse_computed", "select"]

Predicate = Callable[[str, nn.Module, nn.Parameter], bool]
Rule: TypeAlias = str | type | Predicate
Rules: TypeAlias = Rule | Sequence[Rule | Sequence[Rule]] | None


@dataclass(frozen=True)
class Candidate:
    """A parameter under its first name, and every (module name, module, attribute) that holds it."""

    name: str
    param: nn.Parameter
    owners: tuple[tuple[str, nn.Module, str], ...]

    def names(self) -> list[str]:
        return [f"{module_name}.{attribute}".lstrip(".") for module_name, _, attribute in self.owners]

    def computed(self) -> Computed | None:
        """The weight that a module computes from this parameter, where it does not use it as it is."""
        return next((weight for owner in self.owners if (weight := weight_kinds.computed(*owner)) is not None), None)


@dataclass(frozen=True)
class LeftOut:
    """Weights that stay dense for one reason; ``include`` is what takes them, () where ``remedy`` must come first."""

    reason: str
    names: tuple[str, ...]
    numel: int
    include: tuple[str, ...]
    remedy: str = ""

    def __str__(self) -> str:
        shown = ", ".join(self.names[:3]) + (f" and {len(self.names) - 3} more" if len(self.names) > 3 else "")
        more = ", ..." if len(self.include) > 3 else ""
        takes = f"include=[{', '.join(map(repr, self.include[:3]))}{more}] takes them" if self.include else self.remedy
        return f"left dense: {self.numel:,} weights {self.reason}: {shown}; {takes}"


class Selection(NamedTuple):
    """What becomes sparse; what stays dense although nobody excluded it; and the share of that in all matrix weights."""

    chosen: list[Candidate]
    left_out: tuple[LeftOut, ...]
    share_left_out: float


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


def select(model: nn.Module, include: Rules, exclude: Rules, *, frozen: bool = False) -> Selection:
    """The parameters that :func:`dstee.sparsify` makes sparse; with ``frozen`` also those that do not train.

    Raises:
        TypeError: a rule is neither a type, a name pattern nor a function.
        ValueError: a name pattern matches nothing, nothing is left to be sparse, or ``include`` names a parameter whose zeros
            are not those of the weight that the module computes with.
    """
    found = candidates(model)
    modules = {name: module for name, _, module in plain_modules(model)}
    included = {name for rule in _rules("include", include) for name in _included(rule, found)}
    excluded = {name for rule in _rules("exclude", exclude) for name in _excluded(rule, found, modules)}
    refuse_computed("include", [c for c in found if c.name in included - excluded])
    offered = [c for c in found if c.name not in excluded and (is_lazy(c.param) or c.param.numel())]
    reasons = {c.name: _reason(c, frozen) for c in offered if c.name not in included}
    _keep_projections_together(offered, reasons)
    chosen = [c for c in offered if reasons.get(c.name) is None]
    left_out = _left_out([(c, reason) for c in offered if (reason := reasons.get(c.name))], found)
    if not chosen:
        kinds = sorted({type(module).__name__ for module in modules.values()})
        raise ValueError(
            "nothing to make sparse: no Linear, convolution or attention weight is left after include and exclude; "
            + "; ".join([f"the model has {', '.join(kinds)}", *map(str, left_out)])
        )
    matrices = sum(c.param.numel() for c in found if _is_matrix(c))
    return Selection(chosen, left_out, sum(kind.numel for kind in left_out) / max(matrices, 1))


def _is_matrix(c: Candidate) -> bool:
    """Whether it counts: two or more dimensions, and no embedding, norm, bias, or vector that is broadcast."""
    if is_lazy(c.param) or c.param.dim() < 2:
        return False
    if _is_standard(c):
        return True
    if any(weight_kinds.is_embedding(m) or weight_kinds.is_norm(m) or "bias" in a for _, m, a in c.owners):
        return False
    return c.computed() is not None or not any(weight_kinds.is_broadcast(m, c.param) for _, m, _ in c.owners)


def _is_standard(c: Candidate) -> bool:
    return all(weight_kinds.is_standard(module, attribute) for _, module, attribute in c.owners)


def _reason(c: Candidate, frozen: bool) -> str | None:
    """Why a parameter is not sparse by default: None where it is, "" where nobody expects it to be."""
    standard = _is_standard(c)
    if c.computed() is not None:
        return "from which a module computes its weight" if _is_matrix(c) else ""
    own = next((module for _, module, _ in c.owners if weight_kinds.has_own_forward(module)), None)
    if standard and own is None:
        return None if frozen or c.param.requires_grad or is_lazy(c.param) else "frozen (requires_grad is False)"
    if not _is_matrix(c):
        return ""
    if standard and own is not None:
        return f"whose class {type(own).__name__} has a forward of its own, which may compute with another weight"
    module = next(module for _, module, attribute in c.owners if not weight_kinds.is_standard(module, attribute))
    if weight_kinds.is_recurrent(module):
        return f"recurrent ({type(module).__name__})"
    if weight_kinds.is_stack(module, c.param):
        return f"of three dimensions, as of stacked experts, in {type(module).__name__}"
    return f"in {type(module).__name__}, which is no Linear, convolution or attention"


def _keep_projections_together(offered: list[Candidate], reasons: dict[str, str | None]) -> None:
    """Query, key and value of one attention are sparse together or not at all, unless the user's rules say otherwise."""
    projections: dict[str, list[str]] = {}
    for c in offered:
        for _, module_name, attribute in _paths(c):
            if attribute in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                projections.setdefault(module_name, []).append(c.name)
    for names in projections.values():
        if any(reasons.get(name) for name in names):
            for name in names:
                if name in reasons and reasons[name] is None:
                    reasons[name] = "whose query, key or value beside it stays dense"


def _left_out(rows: Sequence[tuple[Candidate, str]], found: Sequence[Candidate]) -> tuple[LeftOut, ...]:
    """One entry for each reason, in the order of the model."""
    kinds: dict[tuple[str, str], list[Candidate]] = {}
    for c, reason in rows:
        weight = c.computed()
        kinds.setdefault((reason, "" if weight is None else weight.remedy), []).append(c)
    return tuple(
        LeftOut(
            reason,
            tuple(c.name for c in group),
            sum(c.param.numel() for c in group),
            ()
            if remedy
            else _patterns([c.name for c in group], [c.name for c in found if not is_lazy(c.param) and c.param.dim() > 1]),
            remedy,
        )
        for (reason, remedy), group in kinds.items()
    )


def _patterns(names: list[str], matrices: list[str]) -> tuple[str, ...]:
    """Few patterns that match ``names`` and no other of ``matrices``: one for all layers of a kind, where that is possible."""
    patterns = tuple(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names))
    matched = {name for name in matrices for pattern in patterns if fnmatchcase(name, pattern)}
    return patterns if matched == set(names) and len(patterns) < len(names) else tuple(names)


def refuse_computed(argument: str, chosen: Sequence[Candidate]) -> None:
    """Raises ValueError naming the parameters that a module computes its weight from."""
    lines = [f"{c.name}: {w.name} is computed from it; {w.remedy}" for c in chosen if (w := c.computed()) is not None]
    if lines:
        raise ValueError(
            f"{argument}= takes parameters that cannot be masked: a mask would not hold on the weight computed from them. "
            "Leave them out, or make the weight a parameter:\n  " + "\n  ".join(lines)
        )


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


def _paths(c: Candidate) -> Iterator[tuple[str, str, str]]:
    """Every (name, module name, attribute) of a parameter; for one below ``parametrizations`` also those of its weight."""
    for name, (module_name, module, attribute) in zip(c.names(), c.owners, strict=True):
        yield name, module_name, attribute
        weight = weight_kinds.computed(module_name, module, attribute)
        if weight is not None:
            yield weight.name, *weight.name.rpartition(".")[::2]


def _included(rule: Rule, found: list[Candidate]) -> set[str]:
    """Names that ``rule`` adds: the weights of matching modules, or parameters by name; biases and other vectors never."""
    matrices = [c for c in found if not is_lazy(c.param) and c.param.dim() > 1]
    if isinstance(rule, str):
        names = {
            c.name
            for c in matrices
            for name, module_name, attribute in _paths(c)
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
        for name, module_name, _ in _paths(c)
        if _ancestors(module_name) & inside or (isinstance(rule, str) and fnmatchcase(name, rule))
    }
    if isinstance(rule, str) and not names:
        raise ValueError(f"exclude pattern {rule!r} matches no parameter and no module of the model")
    return names


def _ancestors(module_name: str) -> set[str]:
    """The module itself, those around it, and the model ("")."""
    parts = module_name.split(".")
    return {".".join(parts[:i]) for i in range(len(parts) + 1)}
