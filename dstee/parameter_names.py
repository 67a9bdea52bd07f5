"""Names of parameters as the plain model has them, and the way to a parameter by its name, whatever is wrapped around."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["ParameterPlace", "get_each", "match_names", "plain_modules", "plain_state_names", "without_wrappers"]

# Children under which wrappers keep what they wrap. "module" is a wrapper's in these classes, elsewhere anybody's.
_CHILDREN = frozenset(
    {"_orig_mod", "_forward_module", "_original_module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def _wraps(parent: nn.Module, child: str) -> bool:
    return child in _CHILDREN or (
        child == "module" and (isinstance(parent, _WRAPPERS) or type(parent).__name__ == "DeepSpeedEngine")
    )


def plain_modules(root: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(name without wrappers, name, module) of every module, a shared one under each of its names."""
    modules = dict(root.named_modules(remove_duplicate=False))
    plain = {"": ""}
    for name, module in modules.items():
        if name:
            parent, _, child = name.rpartition(".")
            inside = plain[parent]
            plain[name] = inside if _wraps(modules[parent], child) else f"{inside}.{child}".lstrip(".")
        yield plain[name], name, module


def plain_state_names(root: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """For names of ``root.state_dict()``: each without the wrappers around its module."""
    plain = {name: short for short, name, _ in plain_modules(root)}
    found = {}
    for name in names:
        module, _, rest = name.rpartition(".")
        while module and module not in plain:  # entries of a module's own making may hold dots
            module, _, more = module.rpartition(".")
            rest = f"{more}.{rest}"
        found[name] = f"{plain.get(module, '')}.{rest}".lstrip(".")
    return found


def without_wrappers(name: str) -> str:
    """A name from a file, whose model is not there to look at, without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _CHILDREN and part != "module")


def match_names(saved: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Saved name -> name in the model, for those that are the same, or are but for the parts that wrappers add."""
    names = set(known)
    plain: dict[str, list[str]] = {}
    for name in names:
        plain.setdefault(without_wrappers(name), []).append(name)
    found = {}
    for name in saved:
        candidates = [name] if name in names else plain.get(without_wrappers(str(name)), [])
        if len(candidates) == 1:
            found[name] = candidates[0]
    return found


class ParameterPlace:
    """Where a model keeps the parameter ``name``: looked up from ``root`` again whenever the way there has changed.

    ``module`` and ``attribute`` hold it now. Wrappers that came in between are passed through.
    """

    def __init__(self, root: nn.Module, name: str) -> None:
        self.root = root
        self.name = name
        self._find()

    def get(self) -> nn.Parameter | None:
        """The parameter that is there now, None where there is none."""
        p = self.module._parameters.get(self.attribute)
        if p is not None:
            for parent, key, child in self._way:
                if parent._modules.get(key) is not child:
                    break
            else:
                return p
        return self.module._parameters.get(self.attribute) if self._find() else None

    def _find(self) -> bool:
        """Walks to the module; False where the way ends before it."""
        *path, self.attribute = self.name.split(".")
        self._way: list[tuple[nn.Module, str, nn.Module]] = []
        self.module = self.root
        for key in path:
            self._unwrap()
            child = self.module._modules.get(key)
            if child is None:
                return False
            self._enter(key, child)
        self._unwrap()
        return True

    def _unwrap(self) -> None:
        """Into wrappers."""
        while (inner := next((key for key in self.module._modules if _wraps(self.module, key)), None)) is not None:
            child = self.module._modules[inner]
            if child is None:
                return
            self._enter(inner, child)

    def _enter(self, key: str, child: nn.Module) -> None:
        self._way.append((self.module, key, child))
        self.module = child


def get_each(places: Sequence[ParameterPlace]) -> list[nn.Parameter | None]:
    """:meth:`ParameterPlace.get` of each; without a Python call for those to which the way is what it was."""
    moved = [1 for place in places for parent, key, child in place._way if parent._modules.get(key) is not child]
    if moved:
        return [place.get() for place in places]
    found = [place.module._parameters.get(place.attribute) for place in places]
    return [place.get() if p is None else p for place, p in zip(places, found, strict=True)]
