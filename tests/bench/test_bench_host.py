"""What follows ``backward()`` in small networks: who is right, who is not, and that nothing else is timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import cli, compare, host, plan, report, results_file, table
from bench.contenders import registry
from bench.contenders.torch_steps import TorchStepping
from bench.training import Stepper

NAMES = [
    "dstee", "ITOP Masking", "ITOP Masking, dstee's", "SGD fused + masks", "SGD foreach + masks", "SGD fused, dense",
]  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.steppers()  # the modules of contenders enter theirs once, and not into the copy
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setitem(host.NETWORKS, "small", lambda: nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 5)))


def run(names: list[str], **more: Any) -> dict[str, Any]:
    task = {
        "kind": "host", "model": "small", "density": 0.3, "contenders": names, "plugins": [], "plan": {"budget": 5.0},
        "steps": 40, **more,
    }  # fmt: skip
    return {"key": {"op": "host", "case": "small", "density": 0.3}, **host.run_host(task, lambda name, phase: None)}


def test_every_stepper_is_right_and_timed(small: None) -> None:
    first, *others = [one.name for one in registry.steppers()]
    assert first == NAMES[0] and set(others) == set(NAMES[1:])
    row = run(NAMES)
    assert (row["layers"], row["dense_parameters"], row["n"]) == (2, 4, 700) and 100 < row["active"] < 320
    for one in row["contenders"].values():
        assert one["status"] == "ok" and len(one["samples_ms"]) == 40 and one["first_call_ms"] > 0, one
    text = table.row_text(row)
    assert "2 sparse and 4 dense parameters, 700 weights" in text and all(name in text for name in NAMES)
    made = results_file.new({}, {}) | {"rows": [row]}
    assert results_file.fault(made) is None and len(compare.compare(made, made)) == len(NAMES)
    pytest.importorskip("matplotlib")
    page = report.render(made)
    assert page.count("<svg") == 2 and "dashed" not in page


class Lazy(TorchStepping):
    def step(self) -> object:
        return None


class Unmasked(TorchStepping):
    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__(model, masks, masked=False)


class Late(TorchStepping):
    """Masks the weights, and forgets the momenta."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__(model, masks, masked=True)

    @torch.no_grad()
    def step(self) -> object:
        self.optimizer.step()
        torch._foreach_mul_(self.weights, self.masks)
        return None


def test_a_wrong_stepper_gets_no_number(small: None) -> None:
    for kind in (Unmasked, Late):
        registry.register(Stepper(kind.__name__, "a rule", kind))
    registry.register(Stepper("Lazy", "a rule", lambda model, masks: Lazy(model, masks, masked=True)))
    found = run(["Unmasked", "Late", "Lazy"])["contenders"]
    assert found["Unmasked"]["status"] == "wrong" and "0.weight: " in found["Unmasked"]["reason"]
    assert found["Late"]["status"] == "wrong" and "momenta differ" in found["Late"]["reason"]
    assert found["Lazy"]["status"] in ("wrong", "failed")
    assert not any("samples_ms" in one for one in found.values())


def test_networks_have_their_parameters() -> None:
    for name, sparse, dense in (("resnet20", 20, 39), ("lenet-300-100", 3, 3)):
        model, masks = host.network(name, 0.1)
        again, _ = host.network(name, 0.1)
        assert len(masks) == sparse and len(list(model.parameters())) == sparse + dense
        for p, q in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(p, q) and p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)


def test_rows_are_on_one_thread_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = plan.tasks(cli.make_parser().parse_args(["--op", "host", "--density", "0.1", "0.05"]))
    assert [(t["model"], t["threads"], t["density"]) for t in tasks] == [
        ("resnet20", 1, 0.1), ("resnet20", 1, 0.05), ("lenet-300-100", 1, 0.1), ("lenet-300-100", 1, 0.05)
    ]  # fmt: skip
    assert plan.tasks(cli.make_parser().parse_args(["--op", "host", "--threads", "2"]))[0]["threads"] == 2
    assert cli.main(["--op", "host", "--shapes", "gpt2"]) == 2
    assert "expected of resnet20, lenet-300-100" in capsys.readouterr().err
