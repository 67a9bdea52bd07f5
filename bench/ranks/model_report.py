"""The model of the cost as a table, under its assumptions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence

from dstee._console import UsageError

from ..results_file import Document, find
from ..shapes import llama_1b, llama_7b, llama_70b
from ..table import aligned, milliseconds
from .cost_model import COUNT_BYTES, LINKS, SWAP_BYTES, Link, Machine, Model, Sent, share, step_seconds, update_seconds
from .report import MOST_BYTES, collectives

__all__ = ["BOUNDS", "links", "sent_by", "text"]

RANKS = (8, 64, 512, 4096)
MODELS = {"1 B": llama_1b, "7 B": llama_7b, "70 B": llama_70b}
BOUNDS = Sent(12, MOST_BYTES)


def links(given: Sequence[Sequence[str]] | None) -> tuple[Link, ...]:
    """Those of ``--link``, or the defaults.

    Raises:
        UsageError: a number cannot be used.
    """
    found = []
    for name, latency, bandwidth in given or ():
        try:
            us, gb_s = float(latency), float(bandwidth)
        except ValueError:
            us = gb_s = math.nan
        if not (math.isfinite(us) and math.isfinite(gb_s) and us >= 0 and gb_s > 0):
            raise UsageError(f"--link {name} {latency} {bandwidth}: expected microseconds, 0 or more, and GB/s above 0")
        found.append(Link(name, us * 1e-6, gb_s * 1e9))
    return tuple(found) or LINKS


def sent_by(document: Document | None) -> tuple[Sent, str]:
    """What an update sends, and where that is from: the most of DST-EE on transformers in the document, else the bounds."""
    rows = [] if document is None else find(document, op="ranks", case="llama-1b", of="DST-EE", dtype="float32")
    measured = [row["traffic"] for row in rows if "error" not in row and row["key"]["ranks"] > 1]
    if not measured:
        return BOUNDS, "at most, as promised"
    most = max(max(traffic["layer_bytes"].values()) for traffic in measured)
    return Sent(max(map(collectives, measured)), most), "the most of DST-EE above"


def text(args: argparse.Namespace, document: Document | None = None) -> str:
    """``args``: of ``bench ranks``."""
    sent, source = sent_by(document)
    machine, reach = Machine(flops=args.flops), links(args.link)
    ours, beside = [x.name for x in reach], [f"share, {x.name}" for x in reach]
    lines = []
    for name, layers in MODELS.items():
        shapes = layers().values()
        model = Model(name, sum(map(math.prod, shapes)), len(shapes))
        for ranks in RANKS:
            step = args.step_seconds or step_seconds(model, args.tokens, ranks, machine)
            times = [
                update_seconds(model, sent, ranks, link, args.all_reduce, machine) if ranks <= link.most else None
                for link in reach
            ]
            shown = ["" if t is None else milliseconds(t * 1e3) for t in times]
            shares = ["" if t is None else f"{share(t, step, args.every):.3%}" for t in times]
            lines.append((name, str(ranks), milliseconds(step * 1e3), *shown, *shares))
    assumed = _assumptions(args, sent, source, reach, machine)
    return "\n".join(["", *assumed, *aligned(("model", "ranks", "step", *ours, *beside), lines)])


def _assumptions(args: argparse.Namespace, sent: Sent, source: str, reach: Sequence[Link], machine: Machine) -> Iterator[str]:
    yield "MODEL, NOT MEASURED: the time of an update, and its share of training"
    yield f"  {sent.collectives} collectives, {sent.layer_bytes / 1024:g} KiB a layer ({source}); every {args.every} steps"
    hops = (f"{x.name} {x.latency * 1e6:g} us a hop, {x.bandwidth / 1e9:g} GB/s" for x in reach)
    yield f"  {args.all_reduce} all-reduce over {'; '.join(hops)}" + "; nvlink up to 72 ranks" * (reach == LINKS)
    host = f"{machine.host_collective * 1e6:g} us a collective and {machine.host_row * 1e6:g} us a KiB of a layer's counts"
    yield f"  on the host {host}, one after the other; nothing overlaps"
    memory = f"{COUNT_BYTES} bytes of each weight for each KiB of its layer's counts, {SWAP_BYTES} for the swap"
    yield f"  in memory {memory}, at {machine.memory / 1e12:g} TB/s; every layer is cut over all ranks"
    if args.step_seconds:
        yield f"  a step takes {args.step_seconds:g} s, whatever the ranks"
    else:
        yield f"  a step takes 6 N tokens / (R flops): {args.tokens:.3g} tokens over all ranks, {args.flops:.3g} flops each"
