"""masked_sgd_ and drop_grow_ on a GPU: ResNet-50's layers, and 100 M weights, against the peers that PyTorch offers.

Times are those of CUDA events around one call, with the L2 cache flushed before each. The GPU is kept busy for 2 ms meanwhile,
so that a call's launches are queued when it starts; torch.topk over many layers queues for longer, therefore it runs as a
CUDA graph too. Contenders take turns, and the copy bandwidth (bytes read and written) is measured in the same turns. Before any
time is taken, the result is compared bit for bit: with the reference for ResNet-50 at the first density, with the CPU kernels,
which the tests hold to the reference, everywhere.

Two sums of bytes (fp32; in sectors of the 32 bytes that a GPU's memory moves):
  modelled      what the kernels move by their own plan, see cuda_traffic.py; the rate printed is of these
  floor         what any implementation must move: for masked_sgd_ the same; for drop_grow_ gradient 4 n, counters 2 n,
                mask n/8, the sectors of w with an active weight; written: the sectors of counters, w and mask that change
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dstee import backends, ops
from dstee.backends import native
from dstee.encoding import bonus_table

from . import cuda_traffic, harness
from .shapes import SHAPES

DEVICE = "cuda"
RULE: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
LISTS: dict[str, list[tuple[int, ...]]] = {"resnet50": list(SHAPES["resnet50"]().values()), "100M": [(5000, 2500)] * 8}
ROUND = 5
REPEATS, FEW = 25, 9
COPIED = 1 << 27  # float32 numbers
BUSY = 3_000_000  # clock cycles, 1.5 to 2 ms

Contender = tuple[Callable[[], None], Callable[[], None], int]  # before each call, the call, repeats


def make_layers(shapes: list[tuple[int, ...]], density: float, swap: float = 0.3) -> harness.Layers:
    """As the harness makes them, on the GPU, with counters as five updates may leave them."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    layers = harness.Layers([], [], [], [], [], [], [])
    for shape in shapes:
        mask = torch.rand(shape, generator=generator, device=DEVICE) < density
        N = torch.randint(0, ROUND + 1, shape, generator=generator, device=DEVICE, dtype=torch.int32)
        N = torch.where(torch.rand(shape, generator=generator, device=DEVICE) < 0.8, 0, N) * ~mask + mask * (N + 1)
        layers.masks.append(mask)
        layers.params.append(torch.randn(shape, generator=generator, device=DEVICE) * mask * 0.05)
        layers.grads.append(torch.randn(shape, generator=generator, device=DEVICE) * 1e-3)
        layers.momenta.append(torch.randn(shape, generator=generator, device=DEVICE) * mask * 1e-3)
        layers.mask_bits.append(ops.pack_mask(mask))
        layers.counts.append(ops.encode_counts(N, mask, ROUND))
        layers.k.append(int(swap * int(mask.sum())))
    return layers


def to_cpu(layers: harness.Layers) -> harness.Layers:
    return harness.Layers(*([t.cpu() for t in tensors] for tensors in list(vars(layers).values())[:-1]), layers.k)


def step(layers: harness.Layers) -> None:
    ops.masked_sgd_(layers.params, layers.grads, layers.momenta, layers.mask_bits, **RULE)


def update(layers: harness.Layers, bonus: Tensor) -> None:
    ops.drop_grow_(layers.params, layers.grads, None, layers.mask_bits, layers.counts, layers.k, bonus=bonus, round=ROUND)


def by_triton() -> bool:
    """Whether the Triton kernels take part."""
    return backends.BACKENDS["triton"].why_not("drop_grow_", torch.device(DEVICE)) is None


@backends.use_backend("triton")
def triton_step(layers: harness.Layers) -> None:
    step(layers)


@backends.use_backend("triton")
def triton_update(layers: harness.Layers, bonus: Tensor) -> None:
    update(layers, bonus)


def gate(layers: harness.Layers, call: Callable[[harness.Layers], None], oracles: list[str]) -> harness.Layers:
    """The state after ``call``, which the native GPU kernels and every oracle agree on.

    Raises:
        AssertionError: they do not.
    """
    result = layers.clone()
    call(result)
    ours = layers.clone()
    if by_triton():
        with backends.use_backend("triton"):
            call(ours)
    for oracle in oracles:
        expected = to_cpu(layers)
        with backends.use_backend(oracle):
            call(expected)
        harness.require_same(f"native on the GPU against {oracle} on the CPU", result, expected)
    if by_triton():
        harness.require_same("triton against native, both on the GPU", ours, result)
    return result


class Flush:
    """Empties the L2 cache: writes four times its size, then keeps the GPU busy while launches queue up behind."""

    def __init__(self) -> None:
        size = torch.cuda.get_device_properties(0).L2_cache_size
        self.buffer = torch.empty(max(4 * size, 256 << 20), dtype=torch.uint8, device=DEVICE)

    def __call__(self) -> None:
        self.buffer.fill_(0)
        torch.cuda._sleep(BUSY)


def measure(contenders: Mapping[str, Contender]) -> dict[str, list[float]]:
    """Milliseconds of each call, in turns forwards and backwards."""
    flush = Flush()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in contenders}
    for prepare, call, _ in contenders.values():
        prepare()
        call()
    for turn in range(max(repeats for _, _, repeats in contenders.values())):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            prepare, call, repeats = contenders[name]
            if turn >= repeats:
                continue
            prepare()
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            flush()
            start.record()
            call()
            stop.record()
            events[name].append((start, stop))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(stop) for start, stop in pairs] for name, pairs in events.items()}


def nothing() -> None:
    pass


def copy_contender() -> tuple[Contender, int]:
    source = torch.ones(COPIED, device=DEVICE)
    target = torch.zeros_like(source)
    return (nothing, lambda: target.copy_(source), REPEATS), 2 * source.nbytes


def graphed(call: Callable[[], None]) -> Callable[[], None]:
    """``call`` as one replay of a CUDA graph: a peer of many small launches without their cost."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def sectors(masks: list[Tensor], item: int) -> int:
    """32-byte sectors of tensors of ``item``-byte elements that hold a position of the masks."""
    return sum(cuda_traffic.runs_of(mask, cuda_traffic.SECTOR // item) for mask in masks)


def row(
    operation: str, name: str, density: float, layers: harness.Layers, kernels: dict[str, cuda_traffic.Bytes], floor: float,
    times: dict, copied: int,
) -> dict:  # fmt: skip
    """The figures of one operation on one list. ``kernels``: modelled bytes; ``floor``: bytes that must move."""
    median = {contender: statistics.median(values) for contender, values in times.items()}
    copy = copied / median["copy"] * 1e-6
    modelled = cuda_traffic.total(kernels).moved
    reached, over_floor = modelled / median["native"] * 1e-6, median["native"] * 1e6 * copy / floor
    result = {
        "op": operation, "list": name, "density": density, "n": layers.n, "layers": len(layers.params),
        "copy_gb_s": copy, "bytes": modelled, "bytes_per_weight": modelled / layers.n,
        "kernel_bytes": {kernel: part.moved for kernel, part in kernels.items()},
        "gb_s": reached, "share_of_copy": reached / copy, "floor_bytes": floor, "over_floor": over_floor,
        "over_native": {peer: median[peer] / median["native"] for peer in times if peer not in ("copy", "native")},
        **{contender: harness.quantiles([t * 1e-3 for t in values]) for contender, values in times.items()},
    }  # fmt: skip
    peers = "  ".join(f"{peer} {ratio:.1f}x" for peer, ratio in result["over_native"].items())
    print(
        f"{operation:12} {name:9} {density:5.2f}  {median['native'] * 1e3:8.1f} us  {modelled * 1e-6:7.1f} MB modelled: "
        f"{reached:5.0f} of {copy:5.0f} GB/s ({reached / copy:4.0%})  {over_floor:.2f}x over floor  {peers}",
        flush=True,
    )
    return result


def bench_step(name: str, density: float, oracles: list[str]) -> dict:
    layers = make_layers(LISTS[name], density)
    gate(layers, step, oracles)
    native, ours, peer = layers.clone(), layers.clone(), layers.clone()
    masks = [mask.float() for mask in peer.masks]
    params = [torch.nn.Parameter(p) for p in peer.params]
    for p, g in zip(params, peer.grads, strict=True):
        p.grad = g
    optimizer = torch.optim.SGD(params, fused=True, **RULE)
    optimizer.step()
    momenta = [optimizer.state[p]["momentum_buffer"] for p in params]

    @torch.no_grad()
    def masked() -> None:
        optimizer.step()
        torch._foreach_mul_(params, masks)
        torch._foreach_mul_(momenta, masks)

    copy, copied = copy_contender()
    times = measure({
        "copy": copy,
        "native": (nothing, lambda: step(native), REPEATS),
        **({"triton": (nothing, lambda: triton_step(ours), REPEATS)} if by_triton() else {}),
        "torch fused + masks": (nothing, masked, REPEATS),
        "torch fused, dense": (nothing, lambda: optimizer.step(), REPEATS),
    })  # fmt: skip
    kernels = {"masked_sgd": cuda_traffic.masked_sgd([cuda_traffic.of_masks(mask) for mask in layers.masks])}
    floor = layers.n / 8 + 5 * 32 * sectors(layers.masks, 4)
    return row("masked_sgd_", name, density, layers, kernels, floor, times, copied)


def topk_update(layers: harness.Layers, N: list[Tensor], bonus: Tensor) -> None:
    """The update as one writes it with torch.topk: no defined order among ties."""
    for w, g, mask, count, k in zip(layers.params, layers.grads, layers.masks, N, layers.k, strict=True):
        w, g, mask, count = w.view(-1), g.view(-1), mask.view(-1), count.view(-1)
        drop = torch.topk(w.abs().masked_fill(~mask, torch.inf), k, largest=False).indices
        mask.index_fill_(0, drop, False)
        score = (g.abs() + bonus[count]).masked_fill(mask, -torch.inf)
        grow = torch.topk(score, k).indices
        mask.index_fill_(0, grow, True)
        w.mul_(mask)
        count.add_(mask)


def modelled_update(layers: harness.Layers, masks: list[Tensor]) -> dict[str, cuda_traffic.Bytes]:
    """``masks``: those after the update."""
    facts = [cuda_traffic.of_masks(*layer) for layer in zip(layers.masks, masks, layers.k, strict=True)]
    blocks = 4 * torch.cuda.get_device_properties(0).multi_processor_count if DEVICE == "cuda" else 1
    return cuda_traffic.drop_grow(facts, step=False, momenta=False, blocks=blocks)


def bench_update(name: str, density: float, oracles: list[str]) -> dict:
    layers = make_layers(LISTS[name], density)
    table = bonus_table(1e-4, 1.0, 1000, ROUND)
    on_gpu = table.to(DEVICE)
    after = gate(layers, lambda state: update(state, table.to(state.params[0].device)), oracles)
    masks = [ops.unpack_mask(b, p.shape) for b, p in zip(after.mask_bits, layers.params, strict=True)]
    changed = [before ^ now for before, now in zip(layers.masks, masks, strict=True)]
    dropped = [change & before for change, before in zip(changed, layers.masks, strict=True)]
    floor = 6 * layers.n + layers.n / 8 + 32 * sectors(layers.masks, 4)
    floor += 32 * (sectors(changed, 2) + sectors(dropped, 4)) + min(32 * sum(int(c.sum()) for c in changed), layers.n / 8)
    kernels = modelled_update(layers, masks)
    del after, masks, changed, dropped

    native, ours, peer = layers.clone(), layers.clone(), layers.clone()
    N = [ops.decode_counts(c, b, ROUND, m.shape) for c, b, m in zip(layers.counts, layers.mask_bits, layers.masks, strict=True)]
    counted = [n.clone() for n in N]
    longer = torch.cat([on_gpu, on_gpu[-1:].expand(64)])

    def restore(state: harness.Layers) -> None:
        for tensors, pristine in ((state.params, layers.params), (state.counts, layers.counts),
                                  (state.masks, layers.masks), (state.mask_bits, layers.mask_bits)):  # fmt: skip
            torch._foreach_copy_(tensors, pristine)

    def restore_peer() -> None:
        restore(peer)
        torch._foreach_copy_(counted, N)

    def topk() -> None:
        topk_update(peer, counted, longer)

    copy, copied = copy_contender()
    contenders: dict[str, Contender] = {
        "copy": copy,
        "native": (lambda: restore(native), lambda: update(native, on_gpu), REPEATS),
        "torch.topk": (restore_peer, topk, FEW),
    }
    if by_triton():
        contenders["triton"] = (lambda: restore(ours), lambda: triton_update(ours, on_gpu), REPEATS)
    restore_peer()
    topk()
    torch.cuda.synchronize()
    try:
        contenders["torch.topk, CUDA graph"] = (restore_peer, graphed(topk), FEW)
    except RuntimeError as error:
        print(f"torch.topk cannot be captured here: {str(error).splitlines()[0]}")
    return row("drop_grow_", name, density, layers, kernels, floor, measure(contenders), copied)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=list(LISTS))
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.10, 0.02])
    parser.add_argument("--json", type=Path, help="file for all figures, written after each row")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU")
    reason = backends.BACKENDS["native"].why_not("drop_grow_", torch.device("cuda"))
    if reason:
        raise SystemExit(reason)

    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "build": native.build_info(), "rows": []}
    for name in options.lists:
        for density in options.densities:
            for bench in (bench_step, bench_update):
                first = name == "resnet50" and density == options.densities[0]
                result["rows"].append(bench(name, density, ["native", "reference"] if first else ["native"]))
                if options.json:
                    part = options.json.with_suffix(".part")
                    part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
                    os.replace(part, options.json)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
