"""Exports hold every weight and mask bit for bit, whatever holds them, and say what is wrong with a file."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support.small_models import EVERY_STEP, convnet, mlp, set_gradients
from torch import Tensor, nn

import dstee
from dstee._export_file import sign
from dstee.export import from_export, from_masks


def has_safetensors() -> bool:
    return importlib.util.find_spec("safetensors") is not None


needs_safetensors = pytest.mark.skipif(not has_safetensors(), reason="safetensors is not installed")


def trained(make=mlp, dtype: torch.dtype = torch.float32, layout=torch.contiguous_format) -> dstee.SparseModel:
    """After two updates: some active weights are 0, having just grown."""
    model = make().to(dtype).to(memory_format=layout)
    sparse = dstee.sparsify(model, 0.6, schedule=EVERY_STEP)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for t in range(2):
        set_gradients(model, t)
        sparse.step(optimizer)
    assert any(bool((layer.param == 0)[sparse.mask(name)].any()) for name, layer in sparse.layers.items())
    return sparse


def assert_same(a: dstee.SparseModel, b: dstee.SparseModel) -> None:
    assert list(a.layers) == list(b.layers)
    for name, mask in a.masks().items():
        assert torch.equal(mask, b.mask(name)), name
        assert a.layers[name].nnz == b.layers[name].nnz == int(mask.sum())
    for (name, p), (other, q) in zip(a.model.state_dict().items(), b.model.state_dict().items(), strict=True):
        assert name == other and torch.equal(p, q) and p.dtype == q.dtype, name


CASES = [(mlp, torch.contiguous_format), (convnet, torch.channels_last), (convnet, torch.contiguous_format)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("make", "layout"), CASES)
@pytest.mark.parametrize("format", ["dense", "csr", pytest.param("safetensors", marks=needs_safetensors)])
def test_round_trips(format, make, layout, dtype, tmp_path):
    sparse = trained(make, dtype, layout)
    path = tmp_path / "model.safetensors" if format == "safetensors" else None
    exported = sparse.export(format, path)
    masks = sparse.masks() if format == "dense" else None
    fresh = make(seed=5).to(dtype).to(memory_format=layout)
    loaded = from_export(fresh, path or exported, masks=masks, method=dstee.RigL(), schedule=EVERY_STEP, seed=9)
    assert loaded.model is fresh and (loaded.method, loaded.schedule, loaded.seed) == (dstee.RigL(), EVERY_STEP, 9)
    assert_same(sparse, loaded)
    plain = make(seed=6).to(dtype).to(memory_format=layout)
    assert_same(sparse, from_export(plain, path or exported, masks=masks))  # and again, into another memory format
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    set_gradients(plain, 0)
    dense = sparse.export("dense")
    assert all(torch.equal(dense[name], t) for name, t in sparse.model.state_dict().items())
    assert not any(t.data_ptr() == dense[name].data_ptr() for name, t in sparse.model.state_dict().items() if t.numel())
    assert from_masks(plain, sparse.masks()).step(optimizer) is False


def test_csr_stores_the_active_weights_and_multiplies_as_the_dense_matrix():
    sparse = trained(convnet)
    exported = sparse.export("csr")
    for name, layer in sparse.layers.items():
        matrix, weight = exported[name], layer.param.detach()
        assert matrix.layout is torch.sparse_csr and matrix.shape == (weight.shape[0], weight[0].numel())
        assert len(matrix.values()) == layer.nnz
        x = torch.randn(matrix.shape[1], 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.allclose(matrix @ x, weight.reshape(matrix.shape) @ x, atol=1e-5)
    assert exported["1.weight"].layout is torch.strided and set(exported) == set(sparse.model.state_dict())


def test_csr_by_hand():
    model = nn.Sequential(nn.Linear(3, 2))
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]])
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[9.0, 2.0, 0.0], [9.0, 9.0, -4.0]]))
    sparse = from_masks(model, {"0.weight": mask})
    csr = sparse.export("csr")["0.weight"]
    assert csr.crow_indices().tolist() == [0, 2, 3] and csr.col_indices().tolist() == [1, 2, 2]
    assert csr.values().tolist() == [2.0, 0.0, -4.0]  # an active weight that is 0 is stored
    assert sparse.export()["0.weight"].tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, -4.0]]


def test_bsr_round_trips_and_stores_the_touched_blocks():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    mask = torch.zeros(4, 6)
    mask[0, 1] = mask[3, 4] = mask[2, 5] = 1
    other = torch.ones(3, 4).tril()
    sparse = from_masks(model, {"0.weight": mask, "1.weight": other})
    exported = sparse.export("bsr", blocksize={"0.weight": (2, 3), "1.weight": (3, 4)})
    bsr = exported["0.weight"]
    assert bsr.crow_indices().tolist() == [0, 1, 2] and bsr.col_indices().tolist() == [0, 1]
    assert torch.equal(bsr.to_dense(), model[0].weight.detach()) and bsr.values().shape == (2, 2, 3)
    loaded = from_export(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), exported, masks="nonzero")
    assert_same(sparse, loaded)
    with pytest.raises(ValueError, match=r"does not say which zeros are active: pass masks=sparse\.masks\(\)"):
        from_export(model, exported)
    with pytest.raises(ValueError, match=r"no multiple of blocksize .*: 1\.weight \[3, 4\]"):
        sparse.export("bsr", blocksize=(2, 3))


class Tied(nn.Module):
    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.register_buffer("count", torch.tensor(3))


@pytest.mark.parametrize("format", ["dense", "csr", pytest.param("safetensors", marks=needs_safetensors)])
def test_tied_weights_stay_tied(format, tmp_path):
    sparse = dstee.sparsify(Tied(), 0.75)
    path = tmp_path / "x" if format == "safetensors" else None
    exported = sparse.export(format, path)
    loaded = from_export(Tied(1), path or exported, masks=sparse.masks() if format == "dense" else None)
    assert_same(sparse, loaded)
    assert loaded.model.a.weight is loaded.model.b.weight and list(loaded.layers) == ["a.weight"]


@needs_safetensors
def test_the_file_holds_active_values_and_one_bit_a_weight(tmp_path):
    from safetensors.torch import load_file

    model = nn.Sequential(nn.Linear(400, 300, bias=False))
    sparse = dstee.sparsify(model, 0.95)
    sparse.export("safetensors", tmp_path / "m")
    stored = load_file(tmp_path / "m")
    assert {name: (t.dtype, len(t)) for name, t in stored.items()} == {
        "0.weight.sparse_values": (torch.float32, 6000),
        "0.weight.sparse_mask": (torch.uint8, 15000),
    }
    assert (tmp_path / "m").stat().st_size < 120_000 * 4 / 12
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@needs_safetensors
def test_damaged_and_foreign_files(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    sparse, path, bad = trained(), tmp_path / "good", tmp_path / "bad"
    sparse.export("safetensors", path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = mlp(seed=3)
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def refused(error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text):
            from_export(model, bad)
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())

    bad.write_bytes(path.read_bytes()[:-5])
    refused(dstee.CheckpointError, "cannot be read")
    bad.unlink()
    refused(dstee.CheckpointError, "cannot be read")
    save_file({"0.weight": torch.zeros(2)}, bad)
    refused(dstee.CheckpointError, "no dstee-sparse file")

    def rewrite(change=lambda t: None, **meta: str) -> None:
        changed = {name: t.clone() for name, t in tensors.items()}
        change(changed)
        save_file(changed, bad, sign(changed, {**metadata, **meta}))

    rewrite(version="2")
    refused(dstee.CheckpointError, "has version 2")
    rewrite(lambda t: t["0.weight.sparse_mask"].bitwise_xor_(1))
    refused(dstee.CheckpointError, r"the mask of 0\.weight does not match its digest")
    rewrite(lambda t: t.update({"0.weight.sparse_values": t["0.weight.sparse_values"][1:]}))
    refused(dstee.CheckpointError, "values and")
    rewrite(lambda t: t.pop("3.weight.sparse_mask"))
    refused(dstee.CheckpointError, "damaged")
    layers = json.loads(metadata["layers"])
    rewrite(layers=json.dumps({**layers, "0.weight": {**layers["0.weight"], "shape": [1 << 30, 1 << 20]}}))
    refused(dstee.CheckpointError, "needs uint8")
    rewrite(layers="[")
    refused(dstee.CheckpointError, "damaged")
    rewrite(lambda t: t.pop("1.bias"))
    refused(dstee.CheckpointError, r"bad: the export does not fit the model.*\n.*1\.bias: missing")
    rewrite(lambda t: t.update(extra=torch.zeros(1)))
    refused(dstee.CheckpointError, "'extra': not in the model")
    with pytest.raises(ValueError, match="holds its own"):
        from_export(model, path, masks=sparse.masks())


def test_without_safetensors_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "dstee\[export\]"'):
        trained().export("safetensors", tmp_path / "m")
    with pytest.raises(ImportError, match=r'pip install "dstee\[export\]"'):
        from_export(mlp(), Path("m"))
    assert not list(tmp_path.iterdir())


def test_wrong_exports():
    sparse = trained()
    for arguments, text in [
        ({"format": "onnx"}, "unknown format 'onnx', expected one of dense, csr, bsr, safetensors"),
        ({"format": "dense", "path": "x"}, "only format='safetensors' writes a file"),
        ({"format": "safetensors"}, "needs one"),
        ({"format": "csr", "blocksize": (2, 2)}, "only format='bsr' takes one"),
        ({"format": "bsr"}, "needs it"),
        ({"format": "bsr", "blocksize": (2, 0)}, r"two ints > 0, got \(2, 0\)"),
        ({"format": "bsr", "blocksize": {"7.weight": (1, 1)}}, "no sparse layers of the model: '7.weight'"),
    ]:
        with pytest.raises(ValueError, match=text):
            sparse.export(**arguments)
    with pytest.raises(ValueError, match="other weights"):
        from_export(mlp(), sparse.export(), masks={name: ~mask for name, mask in sparse.masks().items()})
    with pytest.raises(ValueError, match="path or a dict"):
        from_export(mlp(), [1])
    with pytest.raises(ValueError, match="does not say which"):
        from_export(mlp(), sparse.export())


def test_masks_that_do_not_fit_are_all_listed_and_nothing_changes():
    model = mlp()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    masks: dict[str, Tensor | str] = {
        "9.weight": torch.ones(2),
        "0.weight": torch.ones(2, 2),
        "3.weight": torch.full((5, 9), 0.5),
        "0.bias": "mask",
    }
    with pytest.raises(ValueError) as error:
        from_masks(model, masks)
    for text in ("'9.weight': no parameter", "[2, 2], the parameter [9, 12]", "other values", "0.bias: the mask is a str"):
        assert text in str(error.value)
    tied = Tied()
    with pytest.raises(ValueError, match=r"tied to a\.weight, which has another mask"):
        from_masks(tied, {"a.weight": torch.ones(8, 8), "b.weight": torch.zeros(8, 8)})
    wrong = [{"method": 3}, {"seed": 1.5}, {"schedule": 3}]
    for arguments, kind in [({"masks": {}}, ValueError), *(({"masks": masks, **w}, TypeError) for w in wrong)]:
        with pytest.raises(kind):
            from_masks(model, **arguments)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_model_from_masks_trains_as_the_one_it_came_from():
    """Counters of a fresh SparseModel are those of its masks alone, so both go on alike."""
    first = dstee.sparsify(mlp(), 0.6, schedule=EVERY_STEP, seed=4)
    second = from_masks(mlp(), {f"module.{n}": m.float() for n, m in first.masks().items()}, schedule=EVERY_STEP, seed=4)
    for sparse in (first, second):
        optimizer = dstee.SparseSGD(sparse.model.parameters(), sparse, lr=0.1, momentum=0.9)
        for t in range(4):
            set_gradients(sparse.model, t)
            assert sparse.step(optimizer)
    assert_same(first, second)
    assert all(torch.equal(first.counter(n), second.counter(n)) for n in first.layers)
