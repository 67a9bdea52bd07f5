"""Every contender of this machine, and the registry that they enter."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest
import torch
from support.bench_plugin import Lazy, one

from bench.contenders import registry
from bench.contenders.registry import contenders, trainers
from bench.layers import make_layers
from bench.session import Setting

MATRICES = [(40, 30), (16, 8, 3, 3)]
REAL = [c for c in contenders() if not c.ours and c.name != "torch.compile"]


@pytest.mark.parametrize("contender", REAL, ids=lambda c: f"{c.name}-{c.op}")
def test_a_right_result_passes_and_a_wrong_one_does_not(contender) -> None:
    reason = contender.why_not("cpu", "float32")
    if reason is not None:
        pytest.skip(reason)
    setting = Setting(contender.op, make_layers(MATRICES, 0.2, 0.3), 0.2, 0.3)
    session = contender.open(setting)
    for _ in range(2):
        session.restore()
        session.call()
        assert session.check() is None
    session.restore()
    assert session.check() is not None, "a call that did nothing passes for right"
    session.call()
    with torch.no_grad():
        first = session.outputs()[0].view(-1)
        at = int(((first != 0) & setting.before.masks[0].view(-1)).nonzero()[0])
        first[at] = 0 if first.dtype == torch.bool or contender.op == "drop_grow" else first[at] * 1.5
    assert session.check() is not None, "one wrong weight passes for right"


def test_every_peer_has_a_reason_when_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", absent)
    told = {c.name: c.why_not("cpu", "float32") for c in contenders() if c.name in ("rigl-torch", "sparsimony")}
    assert told.keys() == {"rigl-torch", "sparsimony"} and all("is not installed" in str(t) for t in told.values())


def test_rigl_torch_loads_without_torchvision() -> None:
    if importlib.util.find_spec("rigl_torch") is None:
        pytest.skip("rigl-torch is not installed")
    from bench.contenders import rigl_torch

    assert rigl_torch.load().RigLScheduler


# --- registry ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_from_outside", set(registry._from_outside))


def test_names_are_unique(fresh: None) -> None:
    contenders()
    with pytest.raises(ValueError, match=r"native \(drop_grow\)"):
        registry.register(one("native", Lazy))
    registry.register(one("native", Lazy, "another_op"))


def test_every_module_of_the_package_has_entered_its_own() -> None:
    names = {c.name for c in contenders()}
    assert {"native", "triton", "reference", "torch.compile", "torch.topk", "kthvalue", "ITOP sorts", "rigl-torch",
            "sparsimony", "torch.ao.pruning", "SGD fused, dense", "ITOP Masking", "ITOP Masking, dstee's"} <= names  # fmt: skip
    order = [c.name for c in contenders() if c.op == "drop_grow"]
    own = ["native", "triton", "reference", "torch.topk", "kthvalue", "ITOP sorts", "torch.compile", "rigl-torch"]
    assert [name for name in order if name in own] == own, "dstee's, then what torch has, then what may be missing"
    assert {"dstee", "dense", "by hand", "rigl-torch", "sparsimony", "ITOP Masking", "ITOP Masking, dstee's"} <= {
        t.name for t in trainers()
    }


PLUGINS = {
    "registers": "from bench.contenders.registry import register\n"
    "from support.bench_plugin import Lazy, one\n"
    "register(one('from outside', Lazy))",
    "lists": "from support.bench_plugin import Lazy, one\nCONTENDERS = [one('from outside', Lazy)]",
    "lists_of_a_copy": "from types import SimpleNamespace\n"  # as of dstee.bench's own class, where this is bench
    "CONTENDERS = [SimpleNamespace(name='from outside', op='drop_grow', ours=False, why_not=None)]",
}


@pytest.mark.parametrize("how", PLUGINS)
@pytest.mark.parametrize("by", ["plugin", "entry point"])
def test_contenders_from_outside(how: str, by: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"outside_{how}_{by.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(PLUGINS[how])
    monkeypatch.syspath_prepend(str(tmp_path))
    if by == "entry point":
        entry = importlib.metadata.EntryPoint("any", name, registry.GROUP)
        monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: [entry] if group == entry.group else [])
    for _ in range(2):
        found = contenders([name] if by == "plugin" else [])
        assert [c.name for c in found].count("from outside") == 1


def test_a_plugin_without_contenders_is_refused(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_of_nothing.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="plugin_of_nothing has no list CONTENDERS"):
        contenders(["plugin_of_nothing"])
    with pytest.raises(ImportError):
        contenders(["no_such_module"])
