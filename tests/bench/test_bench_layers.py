"""The layers that are timed: by name, by size, of the user's own model; their state and the bytes that an op must move."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bench import cost, layers
from bench.layers import make_layers
from dstee import ops
from dstee._console import UsageError


def test_shapes_by_name_and_number() -> None:
    sizes = {name: sum(math.prod(s) for s in layers.by_name(name).values()) for name in layers.SHAPES}
    assert sizes["resnet50"] == 25_502_912 and sizes["gpt2"] == 12 * 12 * 768**2 and sizes["llama-1b"] == 973_078_528
    assert abs(math.prod(layers.by_name("1e6")["weight"]) - 1e6) < 1e3
    for bad in ("resnet", "3", "1e12", "nan"):
        with pytest.raises(UsageError, match="--shapes"):
            layers.by_name(bad)


def test_the_users_own_layers(tmp_path: Path) -> None:
    expected = {"1.weight": (16, 8), "2.weight": (5, 3, 3, 3)}
    assert layers.of_model("support.bench_plugin:factory") == expected
    state = {
        "1.weight": torch.zeros(16, 8),
        "2.weight": torch.zeros(5, 3, 3, 3),
        "bias": torch.zeros(16),
        "t": torch.zeros(4, 4).int(),
    }
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "m.pt")
    assert layers.of_model(str(tmp_path / "m.pt")) == expected
    header = json.dumps({"a": {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32]}, "__metadata__": {}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(32))
    assert layers.of_model(str(tmp_path / "m.safetensors")) == {"a": (4, 4)}


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.safetensors", b"\xff" * 20), ("m.safetensors", b""), ("m.safetensors", (9).to_bytes(8, "little") + b'{"a": 1}' + b" "),
     ("m.pt", b"junk"), ("gone.pt", None)],
)  # fmt: skip
def test_damaged_model_files_are_told(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="--from-model"):
        layers.of_model(str(tmp_path / name))


ENTRY = b'{"dtype":"F32","shape":[%s],"data_offsets":[0,0]}'


@pytest.mark.parametrize(
    "header",
    [
        b"[1]",
        b"[" * 100_000,
        b'{"a":' + ENTRY % b"4,4" + b',"a":' + ENTRY % b"2,2" + b"}",
        b'{"a":' + ENTRY % b"true,4" + b"}",
        b'{"a":' + ENTRY % b"-4,4" + b"}",
        b'{"a":' + ENTRY % b"0,1099511627775,1099511627775" + b"}",
        b'{"a":' + ENTRY % (b"9" * 5000) + b"}",
        b'{"a":' + ENTRY % b"NaN" + b"}",
    ],
)
def test_headers_that_no_model_has_are_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UsageError, match=r"--from-model .*m\.safetensors cannot be read: "):
        layers.of_model(str(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    "source", ["nothing", "no_such_module:f", "support.bench_plugin:absent", "math:pi", "support.bench_plugin:Lazy.__name__"]
)
def test_a_factory_must_give_a_model(source: str) -> None:
    with pytest.raises((UsageError, TypeError)):
        layers.of_model(source)


def test_the_cases_have_exact_counts() -> None:
    made = make_layers([(64, 33), (5,)], 0.1, 0.3)
    assert [int(m.sum()) for m in made.masks] == [layers.wanted(64 * 33, 0.1), 1] and made.k == [63, 0]
    N = ops.decode_counts(made.counts[0], made.mask_bits[0], layers.ROUND, (64, 33))
    assert int(N.min()) == 0 and 0.7 < float((N[~made.masks[0]] == 0).float().mean()) < 0.9 and len(N.unique()) > 4


def test_bytes_of_a_case_counted_by_hand() -> None:
    mask = torch.zeros(256, dtype=torch.bool)
    mask[[0, 1, 40]] = True  # lines 0 and 2 of 16 floats
    zeros = torch.zeros(256)
    made = layers.Layers([zeros], [zeros], [zeros], [mask], [ops.pack_mask(mask)], [zeros.short()], [1])
    assert cost.lines([mask], 4) == 2 and cost.lines([mask], 2) == 2 and cost.lines([mask], 4, 32) == 2
    assert cost.masked_sgd_bytes(made) == 32 + 5 * 64 * 2
    after = mask.clone()
    after[1], after[200] = False, True
    # read 6 n + n/8 + 2 lines of weights; written: counters of 1 and 200 (2 lines), the line of weight 1, all of the mask
    assert cost.drop_grow_bytes(made, [after]) == 6 * 256 + 32 + 128 + 128 + 64 + 32
    # reads of a step: the mask, and three arrays of 2 lines, or of 2 pairs; of an update: until the end, then what is written
    assert cost.masked_sgd_reads(made, 64) == 32 + 3 * 128 and cost.masked_sgd_reads(made, cost.PAIR) == 32 + 3 * 256
    assert cost.drop_grow_reads(made, 64) == 6 * 256 + 32 + 128 and cost.drop_grow_reads(made, cost.PAIR) == 6 * 256 + 32 + 256
    assert cost.swapped_bytes(made, [after], 64) == 128 + 64 + 32
    assert cost.swapped_bytes(made, [after], cost.PAIR) == 2 * 128 + 128 + 32


def test_lines_of_the_mask_are_lines_of_bits() -> None:
    n = 1 << 14
    mask = torch.zeros(n, dtype=torch.bool)
    mask[:8] = True
    zeros = torch.zeros(n)
    made = layers.Layers([zeros], [zeros], [zeros], [mask], [ops.pack_mask(mask)], [zeros.short()], [1])
    after = mask.clone()
    after[0], after[9_000] = False, True  # two lines of counters, one of weights, two of 512 bits
    assert cost.swapped_bytes(made, [after], 64) == 2 * 64 + 64 + 2 * 64
