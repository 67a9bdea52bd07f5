"""What ranks send: counted, shown and read again; the model of its cost; a run on two processes."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.processes import Launcher
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from bench import cli, compare, results_file
from bench.ranks import cases, model_report, report, worker
from bench.ranks import launcher as starter
from bench.ranks.cost_model import Link, Machine, Model, Sent, all_reduce_seconds, share, step_seconds, update_seconds
from bench.ranks.traffic import watched
from bench.results_file import Document, Row
from dstee._console import UsageError
from dstee.distributed.cursor import Cursor, word_bytes

# --- the model --------------------------------------------------------------------------------------------------------------

LINK = Link("wire", 1e-6, 1e9)
IDEAL = Machine(flops=1e15, memory=1e12, host_collective=0.0, host_row=0.0)


def test_an_all_reduce_takes_its_hops_and_its_bytes() -> None:
    assert all_reduce_seconds(8e6, 1, LINK, "ring") == all_reduce_seconds(8e6, 1, LINK, "tree") == 0
    assert all_reduce_seconds(8e6, 4, LINK, "ring") == pytest.approx(6 * 1e-6 + 1.5 * 8e-3)
    assert all_reduce_seconds(8e6, 4, LINK, "tree") == pytest.approx(4 * 1e-6 + 2 * 8e-3)
    assert all_reduce_seconds(0, 5, LINK, "tree") == pytest.approx(6 * 1e-6)  # three levels
    with pytest.raises(ValueError, match="'star', expected tree or ring"):
        all_reduce_seconds(1, 2, LINK, "star")


def test_an_update_is_network_host_and_memory() -> None:
    model, sent = Model("m", 1_000_000, 10), Sent(5, 2048.0)
    network = 5 * all_reduce_seconds(10 * 2048 / 5, 4, LINK, "ring")
    memory = 1e6 / 4 * (2 * 7 + 12) / 1e12
    assert update_seconds(model, sent, 4, LINK, "ring", IDEAL) == pytest.approx(network + memory)
    slow_host = Machine(flops=1e15, memory=1e12, host_collective=1e-3, host_row=1e-4)
    extra = update_seconds(model, sent, 4, LINK, "ring", slow_host) - update_seconds(model, sent, 4, LINK, "ring", IDEAL)
    assert extra == pytest.approx(5 * 1e-3 + 10 * 2 * 1e-4)
    assert update_seconds(model, Sent(0, 0.0), 1, LINK, "ring", IDEAL) == pytest.approx(1e6 * 12 / 1e12)


def test_the_share_of_training() -> None:
    assert step_seconds(Model("m", 1_000_000_000, 1), 1e6, 8, Machine(flops=1e15)) == pytest.approx(6 * 1e15 / 8e15)
    assert share(1.0, 1.0, 99) == pytest.approx(0.01) and share(0.0, 1.0, 1) == 0


def test_links_are_read_and_refused() -> None:
    assert model_report.links([["a", "2", "50"]]) == (Link("a", 2e-6, 50e9),)
    for wrong in (["a", "x", "1"], ["a", "-1", "1"], ["a", "1", "0"], ["a", "1", "inf"], ["a", "nan", "1"]):
        with pytest.raises(UsageError, match="expected microseconds"):
            model_report.links([wrong])


def test_the_model_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ranks", "--model-only", "--every", "50", "--tokens", "1e6", "--flops", "1e14", "--all-reduce", "ring"]
    assert cli.main([*words, "--link", "ours", "2", "25"]) == 0
    shown = capsys.readouterr().out
    assert "MODEL, NOT MEASURED" in shown and "12 collectives, 16 KiB a layer (at most, as promised); every 50 steps" in shown
    assert "ring all-reduce over ours 2 us a hop, 25 GB/s\n" in shown and "1e+06 tokens" in shown
    rows = re.findall(r"^(\d+ B) +(\d+) .*%$", shown, re.M)
    assert rows == [(model, str(ranks)) for model in ("1 B", "7 B", "70 B") for ranks in (8, 64, 512, 4096)]
    assert cli.main(["ranks", "--model-only", "--step-seconds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "a step takes 2 s" in shown and "nvlink up to 72 ranks" in shown


# --- layers and options -----------------------------------------------------------------------------------------------------


def test_lists_are_made_small_enough() -> None:
    resnet, llama = cases.case("resnet50", 1e8), cases.case("llama-1b", 1e8)
    assert (resnet.divisor, len(resnet.layers), resnet.n) == (1, 54, 25_502_912)
    assert (llama.divisor, len(llama.layers), llama.n) == (4, 112, 973_078_528 // 16)
    assert cases.case("resnet50", 1e6).layers["conv1"] == (16, 3, 7, 7)
    assert cases.case("mlp", 1).layers["fc3"] == (10, 16)  # as small as it gets


def test_bounds_of_collectives() -> None:
    assert [cases.most_collectives(m, "float32") for m in cases.METHODS] == [12, 12, 6, 12]
    assert cases.most_collectives("SET", "bfloat16") is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--methods dance", "--methods dance: expected of DST-EE, "),
        ("--ranks 0", "expected 1 to 64 processes"),
        ("--updates 0", "--updates 0"),
        ("--tokens 0", "--tokens 0.0"),
        ("--step-seconds -1", "--step-seconds -1.0"),
        ("--density 2", "--density 2.0"),
        ("--link a b c", "--link a b c"),
        ("--shapes dance", "--shapes 'dance'"),
    ],
)
def test_wrong_options_are_told(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ranks", *words.split()]) == 2
    assert told in capsys.readouterr().err


# --- counting ---------------------------------------------------------------------------------------------------------------


def test_rows_are_laid_to_their_layers() -> None:
    with watched() as traffic:
        traffic.sent("all_reduce", torch.zeros(2, 256, dtype=torch.int32))
        for layer in (0, 3):
            Cursor("the drop", layer, 1, word_bytes(0)).take(*[torch.ones(256, dtype=torch.int64).numpy()] * 2)
        traffic.sent("all_reduce", torch.zeros(256))
    found = traffic.to_dict(4)
    assert found["rounds"] == [{"rows": 2, "bytes": 2048, "digits": {"drop 0.24": 2}}]
    assert found["other"] == [["all_reduce", 1024]] and found["layer_bytes"] == [1024, 0, 0, 1024]
    traffic.sent("all_reduce", torch.zeros(1, 256, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="round 1 sent 1 rows, but 0 were read"):
        traffic.to_dict(4)
    assert Cursor.take.__qualname__ == "Cursor.take"  # nothing is left wrapped


# --- documents and tables ---------------------------------------------------------------------------------------------------


def row(method: str, ranks: int, rounds: int = 3, size: int = 1024, digest: str = "d") -> Row:
    sent: list[dict[str, Any]] = [{"rows": 1, "bytes": size, "digits": {"drop 0.24": 1}}] * (rounds if ranks > 1 else 0)
    other: list[list[Any]] = [["all_reduce", 16]] if ranks > 1 else []
    return {
        "key": {
            "op": "ranks", "case": "llama-1b", "of": method, "dtype": "float32", "density": 0.1, "ranks": ranks, "threads": 1,
        },
        "n": 1000, "layers": 1, "divisor": 2,
        "traffic": {
            "updates": [{"rounds": sent, "other": other}], "seconds": [0.5 * ranks], "digest": digest,
            "layer_bytes": {"q": sum(r["bytes"] for r in sent)},
        },
    }  # fmt: skip


def document(*rows: Row) -> Document:
    made = results_file.new({"cores": 2}, {})
    made["rows"] = list(rows)
    return made


def test_a_table_of_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = document(*(row("DST-EE", ranks) for ranks in (1, 2, 4)))
    results_file.write(tmp_path / "a.json", made)
    assert results_file.read(tmp_path / "a.json") == made
    assert cli.main(["report", str(tmp_path / "a.json")]) == 0
    shown = capsys.readouterr().out
    assert "llama-1b, dimensions divided by 2  10 %: 1,000 weights in 1 layers" in shown
    assert re.search(r"DST-EE +4 +1 +4 +3 +1 +3\.0 KiB +3\.0 KiB +4\.0x +same$", shown, re.M)
    assert "rows of DST-EE: drop 0.24 3" in shown and "2 and 4 ranks send the same" in shown and "WRONG" not in shown
    assert cli.main(["report", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]) == 2
    assert "has no page" in capsys.readouterr().err
    assert compare.compare(made, made) == []
    sent, source = model_report.sent_by(made)
    assert sent == Sent(4, 3072) and source == "the most of DST-EE above"
    assert model_report.sent_by(document(row("SET", 2)))[0] == model_report.BOUNDS


def test_what_depends_on_the_ranks_is_told() -> None:
    rows = [row("SET", 1), row("SET", 2), row("SET", 4, rounds=2)]
    assert report.faults(rows) == ["SET: 4 ranks do not send what 2 send"]
    assert "WRONG: SET: 4 ranks" in report.table_text(rows) and "send the same" not in report.table_text(rows)
    rows = [row("SET", 1), row("SET", 2, digest="e")]
    assert report.faults(rows) == ["SET: 2 ranks do not train as 1"]
    assert "DIFFERS" in report.table_text(rows)
    lost = row("SET", 2)
    del lost["traffic"]
    lost["error"] = "rank 1 ended"
    assert report.faults([row("SET", 1), lost]) == ["2 ranks: rank 1 ended"]


def test_more_than_promised_is_told() -> None:
    assert "more than 12 collectives" in report.table_text([row("SET", 2, rounds=12)])
    assert "more than" not in report.table_text([row("SET", 2, rounds=11)])
    assert "more than 6 collectives" in report.table_text([row("RigL(regrow=False)", 2, rounds=6)])
    assert "more than 16 KiB: 1 layers, q first" in report.table_text([row("SET", 2, rounds=2, size=8193)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["key"].pop("of"), "row 0: its key has no of"),
        (lambda r: r.update(n="1"), "row 0: n, layers or divisor is no integer"),
        (lambda r: r.pop("traffic"), "row 0: no traffic"),
        (lambda r: r["traffic"].update(seconds=[0.0]), "seconds is no list"),
        (lambda r: r["traffic"].update(layer_bytes={}), "layer_bytes is no object"),
        (lambda r: r["traffic"].update(updates=[]), "updates is no list"),
        (lambda r: r["traffic"]["updates"][0]["rounds"][0].pop("bytes"), "updates is no list"),
        (lambda r: r["traffic"]["updates"][0]["rounds"][0]["digits"].update(drop=1), "updates is no list"),
        (lambda r: r["traffic"]["updates"][0]["other"].append(["x"]), "updates is no list"),
        (lambda r: r.update(error=1), "error is no text"),
    ],
)
def test_a_row_of_another_form_is_refused(change: Any, told: str) -> None:
    made = document(copy.deepcopy(row("SET", 2)))
    change(made["rows"][0])
    assert told in (results_file.fault(made) or "")


# --- on processes -----------------------------------------------------------------------------------------------------------


def small(*methods: str) -> cases.Task:
    layers = list(cases.case("resnet50", 1).layers.items())[:9]
    return {
        "layers": layers, "density": 0.2, "dtype": "float32", "methods": list(methods), "warmup": 1, "updates": 2,
        "threads": 1, "timeout": 30.0,
    }  # fmt: skip


@pytest.mark.ranks
@pytest.mark.slow
def test_the_command_on_two_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "ranks",
        "--shapes",
        "mlp",
        "--ranks",
        "1",
        "2",
        "--updates",
        "2",
        "--threads",
        "1",
        "--dtype",
        "float32",
        "bfloat16",
    ]
    assert cli.main([*words, "--out", str(tmp_path / "a.json")]) == 0
    made = results_file.read(tmp_path / "a.json")
    assert made["complete"] and len(made["rows"]) == 2 * 2 * 4
    for found in made["rows"]:
        key, sent = found["key"], found["traffic"]
        alone = next(r for r in made["rows"] if r["key"] == {**key, "ranks": 1})
        assert sent["digest"] == alone["traffic"]["digest"], key
        rounds = [len(update["rounds"]) for update in sent["updates"]]
        assert len(rounds) == 2 and (min(rounds) >= 3 if key["ranks"] == 2 else max(rounds) == 0)
        if key["dtype"] == "float32":
            bound = cases.most_collectives(key["of"], key["dtype"])
            assert bound is not None and report.collectives(sent) <= bound
            assert max(sent["layer_bytes"].values()) <= report.MOST_BYTES
    assert "MODEL, NOT MEASURED" in capsys.readouterr().out


class Dispatched(TorchDispatchMode):
    """Every collective that reaches a process group, by whatever way: the bytes that go in."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in function.namespace and "barrier" not in str(function):
            tensors = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            self.sizes.append(sum(t.numel() * t.element_size() for t in tensors))
        return function(*args, **(kwargs or {}))


def dispatched(rank: int, task: cases.Task) -> list[tuple[list[int], dict[str, Any]]]:
    """What reached the group in each update of one rank, and what was counted."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found: list[tuple[list[int], dict[str, Any]]] = []
    steps = iter(worker.updates(task, task["methods"][0], mesh))
    while True:
        with Dispatched() as mode:
            update = next(steps, None)
        if update is None:
            return found
        found.append((mode.sizes, update))


@pytest.mark.ranks
@pytest.mark.parametrize("method", ["DST-EE", "SET"])
def test_nothing_is_sent_uncounted(launcher: Launcher, method: str) -> None:
    for rank in launcher.run(2, dispatched, small(method)):
        assert len(rank) == 2
        for sizes, update in rank:
            counted = [r["bytes"] for r in update["rounds"]] + [size for _, size in update["other"]]
            assert sorted(sizes[-len(counted) :]) == sorted(counted) and len(update["rounds"]) >= 3
        # The last interval holds one update alone.
        assert len(rank[1][0]) == len(rank[1][1]["rounds"]) + len(rank[1][1]["other"])


@pytest.mark.ranks
def test_a_rank_that_fails_ends_all() -> None:
    task = small("SET")
    with pytest.raises(starter.RanksFailed, match=r"rank [01] ended with status 1 \(.*no_such"):
        starter.run({**task, "methods": ["no_such"]}, 2, 60.0)
    with pytest.raises(starter.RanksFailed, match=r"no rank wrote anything for 0\.2 s"):
        starter.run(task, 2, 0.2)


def test_the_committed_figures_depend_on_no_number_of_ranks() -> None:
    made = results_file.read(Path(__file__).resolve().parents[2] / "bench" / "results" / "ranks" / "cpu.json")
    tables = list(report.groups(made))
    assert made["complete"] and len(tables) == 2 and not any(map(report.faults, tables))
    assert {found["key"]["ranks"] for found in made["rows"]} == {1, 2, 4}
