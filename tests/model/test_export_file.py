"""No damaged or hostile export is believed: each is a CheckpointError that names the file, and the model stays as it is."""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dstee
from dstee import CheckpointError, _export_file, _export_formats
from dstee.export import from_export, from_masks

pytest.importorskip("safetensors")

Tensors = dict[str, Tensor]


class Net(nn.Module):
    """A layer whose mask does not fill its last byte, one tied to it, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 3, bias=False), nn.Linear(5, 3, bias=False), nn.Linear(3, 2)
        self.b.weight = self.a.weight
        self.register_buffer("steps", torch.tensor(7))


def fresh() -> Net:
    torch.manual_seed(4)
    return Net()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    dstee.sparsify(fresh(), {"a.weight": 0.5, "c.weight": 0.5}, seed=1).export("safetensors", path)
    return path


def state(model: nn.Module) -> Tensors:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_refused(path: Path, reason: str) -> None:
    model = fresh()
    before = state(model)
    with pytest.raises(CheckpointError, match=reason) as caught:
        from_export(model, path)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 600
    assert same(before, state(model))


# --- damage --------------------------------------------------------------------------------------------------------------


def refuses(path: Path, expected: Tensors) -> bool:
    """Whether the file is refused; if it is not, it must hold what it held."""
    model = fresh()
    before = state(model)
    try:
        sparse = from_export(model, path)
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: ") and same(before, state(model))
        return True
    assert same(state(model) | {f"{name} mask": m for name, m in sparse.masks().items()}, expected)
    return False


@pytest.mark.long
def test_no_flipped_bit_is_believed(file: Path) -> None:
    """One bit of every byte, and thousands more; what is left of the header's padding may be any space."""
    whole = file.read_bytes()
    model = fresh()
    expected = {f"{name} mask": m for name, m in from_export(model, file).masks().items()} | state(model)
    rng = random.Random(0)
    places = [(i, 1 << i % 8) for i in range(len(whole))]
    places += [(rng.randrange(len(whole)), 1 << rng.randrange(8)) for _ in range(3000 - len(whole))]
    for i, bit in places:
        damaged = bytearray(whole)
        damaged[i] ^= bit
        file.write_bytes(damaged)
        assert refuses(file, expected) or whole[i] == 0x20, f"byte {i}, {whole[max(i - 20, 0) : i + 20]!r}"


def test_no_other_byte_is_believed(file: Path) -> None:
    whole = file.read_bytes()
    model = fresh()
    expected = {f"{name} mask": m for name, m in from_export(model, file).masks().items()} | state(model)
    rng = random.Random(1)
    for _ in range(1500):
        damaged = bytearray(whole)
        i = rng.randrange(len(whole))
        damaged[i] = rng.randrange(256)
        file.write_bytes(damaged)
        assert refuses(file, expected) or damaged[i] == whole[i] or whole[i] == 0x20


def test_no_truncation_and_no_excess_is_believed(file: Path) -> None:
    whole = file.read_bytes()
    for length in (*range(40), *range(40, len(whole), 11), len(whole) - 1):
        file.write_bytes(whole[:length])
        assert_refused(file, "cannot be read")
    file.write_bytes(whole + b"\0")
    assert_refused(file, "cannot be read")


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "missing"):
        assert_refused(tmp_path / name, "cannot be read")


# --- lies with the right digests -----------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[Tensors, dict[str, str]], None], signed: bool = True) -> None:
    """Changes tensors and metadata and makes the digests fit again."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, _export_file.sign(tensors, metadata) if signed else metadata)


def layer(**entries: object) -> Callable[[Tensors, dict[str, str]], None]:
    def change(tensors: Tensors, metadata: dict[str, str]) -> None:
        layers = json.loads(metadata["layers"])
        layers["a.weight"] |= entries
        metadata["layers"] = json.dumps(layers)

    return change


def meta(**entries: str) -> Callable[[Tensors, dict[str, str]], None]:
    return lambda tensors, metadata: metadata.update(entries)


def of_one_weight(tensors: Tensors, metadata: dict[str, str]) -> None:
    """nnz true equals one."""
    layers = json.loads(metadata["layers"])
    bits = torch.tensor([1, 0], dtype=torch.uint8)
    tensors |= {"a.weight.sparse_values": torch.ones(1), "a.weight.sparse_mask": bits}
    layers["a.weight"] |= {"nnz": True, "mask_digest": _export_file._digest(bits)}
    metadata["layers"] = json.dumps(layers)


def padding(tensors: Tensors, metadata: dict[str, str]) -> None:
    """A bit behind the last of 15 weights in place of an active one: their number is right."""
    bits = tensors["a.weight.sparse_mask"]
    first = next(i for i in range(8) if int(bits[0]) >> i & 1)
    bits[0] ^= 1 << first
    bits[1] |= 0x80
    layer(mask_digest=_export_file._digest(bits))(tensors, metadata)


def dense_too(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors["a.weight"] = torch.ones(3, 5)


def no_layers(tensors: Tensors, metadata: dict[str, str]) -> None:
    for name in [name for name in tensors if ".sparse_" in name]:
        del tensors[name]
    tensors |= {name: t.clone() for name, t in fresh().state_dict().items()}
    metadata |= {"layers": "{}", "tied": "{}"}


LIES = {
    "nnz is true": (of_one_weight, "expected True"),
    "nnz is a float": (layer(nnz=8.0), "expected 8.0"),
    "nnz is negative": (layer(nnz=-1), "expected -1"),
    "nnz is huge": (layer(nnz=1 << 62), "active weights"),
    "nnz has more than 64 bits": (meta(layers=f'{{"a.weight": {{"nnz": {"9" * 400}}}}}'), "more than 64 bits"),
    "a number of 10^5 digits": (meta(layers=f'{{"a.weight": {{"nnz": {"9" * 100_000}}}}}'), "more than 64 bits"),
    "shape with true": (layer(shape=[True, 15]), "no possible shape"),
    "shape with a float": (layer(shape=[3.0, 5]), "no possible shape"),
    "negative shape": (layer(shape=[-3, -5]), "no possible shape"),
    "shape of 64 bits": (layer(shape=[1 << 63, 0]), "no possible shape"),
    "strides overflow": (layer(shape=[0, 1 << 39, 1 << 39, 1 << 39]), "no possible shape"),
    "size overflows to 15": (layer(shape=[(1 << 32) + 1, 1 << 32]), "no possible shape"),
    "many dimensions": (layer(shape=[1] * 40 + [15]), "no possible shape"),
    "huge shape": (layer(shape=[1 << 20, 1 << 20]), "needs uint8"),
    "another shape": (layer(shape=[5, 3]), r"does not fit the model"),
    "shape is text": (layer(shape="35"), "no possible shape"),
    "unknown key": (layer(format=1), "is not described by"),
    "no entry": (meta(layers='{"a.weight": [1]}'), "is not described by"),
    "layers is a list": (meta(layers="[]"), "must be objects"),
    "layers is deep": (meta(layers="[" * 100_000 + "]" * 100_000), "nested too deeply"),
    "layers is rather deep": (meta(layers="[" * 300 + "]" * 300), "nested too deeply"),
    "layers twice": (meta(layers='{"a.weight": {}, "a.weight": {}}'), "duplicate key"),
    "NaN": (meta(layers='{"a.weight": NaN}'), "NaN is not JSON"),
    "Infinity": (meta(tied='{"b.weight": -Infinity}'), "-Infinity is not JSON"),
    "an endless number": (meta(tied='{"b.weight": 1e999}'), "is not JSON"),
    "tied twice": (meta(tied='{"b.weight": "a.weight", "b.weight": "c.weight"}'), "duplicate key"),
    "tied to itself": (meta(tied='{"b.weight": "b.weight"}'), "which is no layer"),
    "tied to a number": (meta(tied='{"b.weight": 1}'), "which is no layer"),
    "a layer is tied": (meta(tied='{"c.weight": "a.weight"}'), "holds these twice: c.weight"),
    "a dense tensor is tied": (meta(tied='{"b.weight": "a.weight", "steps": "a.weight"}'), "holds these twice: steps"),
    "dense and sparse": (dense_too, "holds these twice: a.weight"),
    "tied is a list": (meta(tied="[]"), "must be objects"),
    "more metadata": (meta(extra="1"), "metadata are"),
    "another format": (meta(format="pt"), "no dstee-sparse file"),
    "another version": (meta(version="2"), "has version 2"),
    "version is true": (meta(version="true"), "has version true"),
    "bits behind the last weight": (padding, "bits behind its 15 weights"),
    "no sparse layers": (no_layers, "holds no sparse layers"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_with_right_digests_are_refused(file: Path, name: str) -> None:
    change, reason = LIES[name]
    rewrite(file, change)
    assert_refused(file, reason)


def test_the_liar_can_tell_the_truth(file: Path) -> None:
    rewrite(file, lambda tensors, metadata: None)
    from_export(fresh(), file)


@pytest.mark.parametrize("key", ["digest", "digests"])
def test_the_digests_cannot_be_left_out(file: Path, key: str) -> None:
    rewrite(file, lambda tensors, metadata: metadata.pop(key) and None, signed=False)
    assert_refused(file, "metadata are")


def test_every_tensor_has_a_digest(file: Path) -> None:
    """Another value in each, everything else as it was."""
    from safetensors.torch import load_file

    whole = file.read_bytes()
    for name in load_file(file):

        def change(tensors: Tensors, metadata: dict[str, str], name: str = name) -> None:
            tensors[name] += 1

        file.write_bytes(whole)
        rewrite(file, change, signed=False)
        assert_refused(file, f"damaged: {name} does not match its digest")


def test_a_file_of_other_weights_is_named(file: Path) -> None:
    for model, reason in ((nn.Linear(2, 2), "does not fit the model"), (nn.Sequential(), "not in the model")):
        with pytest.raises(CheckpointError, match=reason) as caught:
            from_export(model, file)
        assert str(caught.value).startswith(f"{file}: ")


# --- headers that safetensors itself would believe -----------------------------------------------------------------------


def write_header(path: Path, text: bytes, data: bytes = b"") -> None:
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


EMPTY = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
HEADERS = {
    "one tensor twice": b'{"a":' + EMPTY + b',"a":' + EMPTY + b"}",
    "metadata twice": b'{"__metadata__":{"format":"dstee-sparse","format":"dstee-sparse"}}',
    "strides overflow": b'{"a":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904],"data_offsets":[0,0]}}',
    "shape with true": b'{"a":{"dtype":"F32","shape":[true,0],"data_offsets":[0,0]}}',
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a list": b"[1]",
    "unknown entry": b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"more":1}}',
    "unknown dtype": b'{"a":{"dtype":"O","shape":[0],"data_offsets":[0,0]}}',
    "metadata of numbers": b'{"__metadata__":{"format":1}}',
    "no text": b'{"\xff":1}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers_are_refused(tmp_path: Path, name: str) -> None:
    write_header(tmp_path / "x", HEADERS[name])
    assert_refused(tmp_path / "x", "cannot be read|no dstee-sparse")


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    for length in (0, 1, 1000, 1 << 40, (1 << 64) - 1):
        (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + b"{}")
        assert_refused(tmp_path / "x", "cannot be read: a header of")


def test_a_header_of_more_than_the_limit_is_neither_read_nor_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = int.from_bytes(file.read_bytes()[:8], "little")
    sparse = from_export(fresh(), file)
    monkeypatch.setattr(_export_file, "MAX_HEADER", length - 1)
    assert_refused(file, f"cannot be read: a header of {length} bytes")
    with pytest.raises(ValueError, match=f"would have {length} bytes, at most {length - 1} can be read back"):
        sparse.export("safetensors", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(_export_file, "MAX_HEADER", length)
    sparse.export("safetensors", tmp_path / "x")
    from_export(fresh(), tmp_path / "x")


@pytest.mark.long
def test_half_a_million_empty_tensors_are_refused_soon(tmp_path: Path) -> None:
    write_header(tmp_path / "x", b"{" + b",".join(b'"%d":' % i + EMPTY for i in range(500_000)) + b"}")
    begin = time.process_time()
    assert_refused(tmp_path / "x", "500000 tensors, at most")
    assert time.process_time() - begin < 20  # seconds on a slow machine; minutes without the limit


def test_more_tensors_than_can_be_read_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_export_file, "MAX_TENSORS", 5)
    with pytest.raises(ValueError, match="would have 6 tensors, at most 5"):
        dstee.sparsify(fresh(), {"a.weight": 0.5, "c.weight": 0.5}).export("safetensors", tmp_path / "x")
    assert not list(tmp_path.iterdir())


# --- what an export holds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize("format", ["dense", "csr", "bsr", "safetensors"])
def test_weights_outside_the_mask_leave_as_zeros(tmp_path: Path, format: str, noticed: bool) -> None:
    """Somebody may have written to them since the last step. ``export`` looks first, and masks the model; the formats do not
    rely on it, and leave the model as it is."""
    model = fresh()
    sparse = dstee.sparsify(model, {"a.weight": 0.5, "c.weight": 0.5})
    with torch.no_grad():
        for name, mask in sparse.masks().items():
            model.get_parameter(name)[~mask] = 9.0
    before = state(model)
    path = tmp_path / "x" if format == "safetensors" else None
    blocksize = (1, 1) if format == "bsr" else None
    if noticed:
        with pytest.warns(UserWarning, match=r"weights outside the masks were written and are 0 again: a.weight"):
            exported = sparse.export(format, path, blocksize=blocksize)
    else:
        exported = _export_formats.export(model, sparse.layers, format, path, blocksize)
        assert same(before, state(model))
    masks = sparse.masks() if format in ("dense", "bsr") else None
    loaded = from_export(fresh(), path or exported, masks=masks).model.state_dict()
    for name in ("a.weight", "b.weight", "c.weight"):
        mask = sparse.mask("a.weight" if name == "b.weight" else name)
        assert torch.equal(loaded[name], torch.where(mask, before[name], 0))
        if format != "safetensors":
            assert not exported[name].to_dense().view(mask.shape)[~mask].any()


@pytest.mark.parametrize("wrong", [{"method": 3}, {"seed": 1.5}, {"schedule": 3}])
def test_wrong_arguments_leave_the_model_as_it_is(file: Path, wrong: dict[str, object]) -> None:
    model = fresh()
    before = state(model)
    masks = dstee.sparsify(copy.deepcopy(model), 0.5).masks()
    exported = from_masks(copy.deepcopy(model), masks).export()
    for source, given in ((file, None), (exported, masks)):
        with pytest.raises(TypeError):
            from_export(model, source, masks=given, **wrong)  # type: ignore[arg-type]
        assert same(before, state(model))
