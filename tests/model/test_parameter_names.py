"""Wrappers are no part of a layer's name: the same seed gives the same masks, and states load across, with and without them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.small_models import EVERY_STEP, mlp, set_gradients
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing, checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import dstee
from dstee.export import from_export, from_masks
from dstee.parameter_names import ParameterPlace, match_names, plain_modules, plain_state_names, without_wrappers

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile's imports


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Forward(nn.Module):
    """As Lightning Fabric wraps: the module under two names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = module
        self._original_module = module


def checkpointed(model: nn.Module) -> nn.Module:
    apply_activation_checkpointing(model, checkpoint_wrapper, check_fn=lambda module: isinstance(module, nn.Linear))
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "compile": torch.compile,
    "checkpoint of the whole": checkpoint_wrapper,
    "checkpoint of each layer": checkpointed,
    "average": AveragedModel,
    "Fabric": Forward,
    "several": lambda model: Forward(nn.parallel.DistributedDataParallel(torch.compile(checkpointed(model)))),
}
NAMES = ["0.weight", "3.weight"]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_and_masks_are_those_of_the_plain_model(wrapper: str) -> None:
    plain = dstee.sparsify(mlp(), 0.7, seed=4)
    wrapped = dstee.sparsify(WRAPPERS[wrapper](mlp()), 0.7, seed=4)
    assert list(wrapped.layers) == NAMES
    assert all(torch.equal(wrapped.mask(name), plain.mask(name)) for name in NAMES)
    rules = {"exclude": "3*"}
    assert list(dstee.sparsify(WRAPPERS[wrapper](mlp()), 0.7, **rules).layers) == ["0.weight"]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("late", [True, False])
def test_training_goes_on_under_a_wrapper(wrapper: str, late: bool) -> None:
    """Whether the wrapper comes before or after, and however parameters are named then."""
    results = []
    for wrap in (WRAPPERS["none"], WRAPPERS[wrapper]):
        model = mlp()
        outer = model if late else wrap(model)
        sparse = dstee.sparsify(outer, 0.7, schedule=EVERY_STEP, method=dstee.RigL(order="after"))
        outer = wrap(model) if late else outer
        inner = outer.module if isinstance(outer, AveragedModel) and not late else model  # an average is a copy
        optimizer = dstee.SparseSGD(inner.parameters(), sparse, lr=0.1)
        for t in range(3):
            set_gradients(inner, t)
            assert sparse.step(optimizer)
        results.append({name: (sparse.mask(name), sparse.layers[name].param.detach()) for name in NAMES})
    for name in NAMES:
        assert all(torch.equal(a, b) for a, b in zip(results[0][name], results[1][name], strict=True)), name


@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name != "average"])  # it has state of its own
def test_states_masks_and_exports_load_across(wrapper: str, tmp_path: Path) -> None:
    sides = [mlp(1), WRAPPERS[wrapper](mlp(1))]
    made = [dstee.sparsify(side, 0.7, seed=4) for side in sides]
    for source, target in ((0, 1), (1, 0)):
        made[target].load_state_dict(made[source].state_dict())
        assert made[source].state_dict(full=True)["digest"] == made[target].state_dict(full=True)["digest"]
        exported = made[source].export()
        again = from_export([mlp(2), WRAPPERS[wrapper](mlp(2))][target], exported, masks=made[source].masks())
        assert all(torch.equal(again.layers[n].param, made[source].layers[n].param) for n in NAMES)
        made[source].export("safetensors", tmp_path / "x")
        again = from_export([mlp(2), WRAPPERS[wrapper](mlp(2))][target], tmp_path / "x")
        assert all(torch.equal(again.mask(n), made[source].mask(n)) for n in NAMES)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_forward_module.", "module._orig_mod."])
def test_names_in_files_may_have_prefixes(prefix: str) -> None:
    """As 0.1.0 and other programs wrote them."""
    sparse = dstee.sparsify(mlp(), 0.7, seed=4)
    masks = {prefix + name: mask for name, mask in sparse.masks().items()}
    again = from_masks(mlp(), masks)
    assert all(torch.equal(again.mask(name), sparse.mask(name)) for name in NAMES)
    blocks = {prefix + name: t for name, t in sparse.export("bsr", blocksize=(1, 3)).items()}
    from_blocks = from_export(mlp(), blocks, masks="nonzero")
    assert all(torch.equal(from_blocks.layers[name].param, sparse.layers[name].param) for name in NAMES)
    exported = {prefix + name: t for name, t in sparse.export("csr").items()}
    assert all(torch.equal(from_export(mlp(), exported).mask(name), sparse.mask(name)) for name in NAMES)


class Owner(nn.Module):
    """A model of one's own whose part is called ``module``."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(4, 3)
        self.head = nn.Linear(3, 2)


def test_module_is_an_ordinary_name_elsewhere() -> None:
    sparse = dstee.sparsify(Owner(), 0.5)
    assert list(sparse.layers) == ["module.weight", "head.weight"]
    assert list(dstee.sparsify(nn.DataParallel(Owner()), 0.5).layers) == ["module.weight", "head.weight"]
    again = dstee.sparsify(nn.DataParallel(Owner()), 0.5, seed=1)
    again.load_state_dict(sparse.state_dict())
    assert torch.equal(again.mask("module.weight"), sparse.mask("module.weight"))


def test_matching() -> None:
    assert without_wrappers("module._orig_mod.a.0.weight") == "a.0.weight"
    assert match_names(["module.a", "b", "c"], ["a", "b"]) == {"module.a": "a", "b": "b"}
    assert match_names(["a"], ["module.a", "_orig_mod.a"]) == {}, "either could be meant"
    assert match_names(["module.a"], ["module.a", "a"]) == {"module.a": "module.a"}


def test_state_names() -> None:
    model = nn.DataParallel(nn.Sequential(nn.BatchNorm1d(3)))
    names = plain_state_names(model, model.state_dict())
    assert names["module.0.running_mean"] == "0.running_mean" and len(set(names.values())) == len(names)
    assert [(plain, name) for plain, name, _ in plain_modules(model)] == [("", ""), ("", "module"), ("0", "module.0")]


def test_a_place_follows_what_is_put_around_and_in() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    place = ParameterPlace(model, "0.0.weight")
    first = place.get()
    model[0] = checkpoint_wrapper(model[0])
    assert place.get() is first
    model[0] = nn.Sequential(nn.Linear(2, 2))
    assert place.get() is model[0][0].weight and place.module is model[0][0]
    model[0] = nn.ReLU()
    assert place.get() is None
    copied = copy.deepcopy(place)
    assert copied.get() is None and copied.root is not model
