"""The layers that are timed: by name, by size, of the user's own model; their state and the bytes that an op must move."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from bench import cli, cost, layers, plan, sweep
from bench.layers import make_layers
from dstee import cli as dstee_cli
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


MODELS = """
import torch
from torch import nn

def good():
    from own_layers import width
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))

ready = nn.Linear(16, 8)
number = 7

def raises():
    raise RuntimeError("two\\nlines")

def wants(width):
    return nn.Linear(width, width)

def nothing():
    pass

def ends():
    raise SystemExit(3)

def only_norms():
    return nn.Sequential(nn.BatchNorm1d(8), nn.Embedding(10, 8))

def lazy():
    return nn.LazyLinear(8)

def frozen():
    return nn.Linear(8, 8).requires_grad_(False)
"""
BAD = {
    "nothing": "expected module:function, or a .pt", ":make": "cannot be imported", "no_such_module:f": "No module named",
    "own_models:absent": "has no attribute 'absent'", "own_models:": "cannot be imported",
    "own_models:number": "is no function",
    "own_models:raises": "raised RuntimeError: two lines",
    "own_models:wants": "missing 1 required positional argument: 'width'",
    "own_models:nothing": "gives a NoneType, expected a torch.nn.Module", "own_models:ends": "raised SystemExit: 3",
    "own_models:torch.zeros": "raised TypeError", "own_models:only_norms": "nothing to make sparse: no Linear",
    "own_models:lazy": "has no shape yet: call the model once", "own_models:frozen": "frozen (requires_grad is False)",
    "broken:make": "SyntaxError", "needs_more:make": "No module named 'not_there'", "leaves:make": "SystemExit: 1",
}  # fmt: skip


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with modules of a user, which is not on the path."""
    texts = {"own_models": MODELS, "own_layers": "width = 16\n", "broken": "def make(:\n", "needs_more": "import not_there\n",
             "leaves": "import sys\nsys.exit(1)\n", "own_contenders": "import nothing_of_this_name\n"}  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    return tmp_path


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("source", BAD)
def test_a_function_must_give_a_model(source: str, at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dstee_cli.main(["bench", "--from-model", source]) == 2
    told = capsys.readouterr()
    assert BAD[source] in told.err and source in told.err and told.err.startswith("dstee: error: --from-model") and not told.out
    assert len(told.err.splitlines()) == 1, "one line, no traceback"


def test_modules_of_the_working_directory_are_found(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(sweep, "run", lambda tasks, *rest, **more: seen.update({t["op"]: t["shapes"] for t in tasks}))
    assert cli.main(["--from-model", "own_models:good"]) == 0
    assert seen == {"masked_sgd": [[16, 8], [4, 16]], "drop_grow": [[16, 8], [4, 16]]}
    assert layers.of_model("own_models:ready") == {"weight": (8, 16)}
    with pytest.raises(UsageError, match="--plugin: ModuleNotFoundError: No module named 'nothing_of_this_name'"):
        plan.tasks(cli.make_parser().parse_args(["--plugin", "own_contenders"]))


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
