"""One row: every contender gated, then timed in turns. No number for a contender whose result is wrong.

Order for each contender: open, one call for its first time and memory, a check, then in turns (forwards, backwards, forwards:
ABBA) restore, cold cache, the timed call, a digest of its result at some repeats; the result of the last timed call is compared
with what the rule demands. The copy and read of :mod:`bandwidth` take part in the turns.
"""

from __future__ import annotations

import gc
import hashlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .bandwidth import Bandwidth
from .clock import Clock, CudaClock
from .contenders import Contender, Session, Setting

ROOF_REPEATS = 15
DIGESTS = 4  # of the first repeats, and of the last


@dataclass(frozen=True)
class Plan:
    """``repeats`` of each contender; one that has used up ``budget`` seconds stops, but not before ``least`` repeats."""

    repeats: int = 31
    budget: float = 10.0
    least: int = 3


@dataclass
class Entry:
    """A contender in the turns. ``result``: its part of the row."""

    contender: Contender
    session: Session
    result: dict[str, Any]
    samples: list[float] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def finished(self, plan: Plan) -> bool:
        spent = sum(self.samples)
        return len(self.samples) >= plan.repeats or (len(self.samples) >= plan.least and spent >= plan.budget)


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """blake2b of the sums over rows and over columns of the tensors' bits: any one change shows, at the speed of memory."""
    state = hashlib.blake2b(digest_size=8)
    for t in tensors:
        data = t.detach().contiguous().view(-1).view(torch.uint8)
        whole = data.numel() // 8 * 8
        numbers = data[:whole].view(torch.int64)
        square = numbers[: numbers.numel() // 4096 * 4096].view(-1, 4096)
        for part in (square.sum(0), square.sum(1), numbers[square.numel() :], data[whole:]):
            state.update(part.cpu().numpy().tobytes())
    return state.hexdigest()


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Milliseconds: all samples, their median, 20th and 80th percentile. ``noisy``: those two are over a tenth apart."""
    cut = statistics.quantiles(samples, n=10) if len(samples) > 1 else [samples[0]] * 9
    median = statistics.median(samples)
    return {
        "median_ms": median * 1e3, "p20_ms": cut[1] * 1e3, "p80_ms": cut[7] * 1e3, "repeats": len(samples),
        "noisy": cut[7] - cut[1] > 0.1 * median, "samples_ms": [s * 1e3 for s in samples],
    }  # fmt: skip


Emit = Callable[[str | None, str], None]


def measure(
    setting: Setting, contenders: Sequence[Contender], plan: Plan, clock: Clock, emit: Emit, roof_bytes: int | None = None
) -> dict[str, Any]:
    """Contenders' results by name, and the roof's. ``emit(name, phase)`` is told before anything that may crash or hang.

    Raises:
        SystemExit: the contender that was told last wrote to the inputs that all share.
    """
    results: dict[str, Any] = {}
    entries = []
    inputs = [t for tensors in setting.before.lists() for t in tensors]
    untouched = fingerprint(inputs)
    for contender in contenders:
        emit(contender.name, "first call")
        entry = _enter(contender, setting, clock)
        if fingerprint(inputs) != untouched:  # all others would be measured, and judged, on what it left
            raise SystemExit("it wrote to the inputs that all contenders share")
        results[contender.name] = entry.result
        if entry.result["status"] == "ok":
            entries.append(entry)
        else:
            entry.session.close()
    emit(None, "roof")
    roof = Bandwidth(setting.device, roof_bytes)
    roof_samples: dict[str, list[float]] = {name: [] for name in roof.calls()}
    for call, _ in roof.calls().values():
        call()
    gc.collect()
    gc.disable()
    try:
        turn = 0
        while any(not e.finished(plan) for e in entries) or (turn < plan.least):
            direction = 1 if turn % 2 == 0 else -1
            if turn < ROOF_REPEATS:
                emit(None, "roof")
                for name, (call, _) in list(roof.calls().items())[::direction]:
                    roof_samples[name].append(clock.seconds(call))
            for entry in entries[::direction]:
                if not entry.finished(plan):
                    emit(entry.contender.name, f"repeat {len(entry.samples) + 1}")
                    _repeat(entry, plan, clock)
            entries = [e for e in entries if e.result["status"] == "ok"]
            turn += 1
    finally:
        gc.enable()
    for entry in entries:
        entry.result |= summary(entry.samples) | {"digest": entry.digests[-1], "digests_equal": len(set(entry.digests)) == 1}
        if isinstance(clock, CudaClock):
            emit(entry.contender.name, "CUDA graph")
            entry.result["graph"] = _graph(entry, plan, clock)
    bytes_of = {name: moved for name, (_, moved) in roof.calls().items()}
    measured = {f"{name}_gb_s": bytes_of[name] / statistics.median(s) * 1e-9 for name, s in roof_samples.items()}
    return {
        "contenders": results,
        "roof": measured | {"samples_ms": {n: [x * 1e3 for x in s] for n, s in roof_samples.items()}},
    }


def _enter(contender: Contender, setting: Setting, clock: Clock) -> Entry:
    result: dict[str, Any] = {"rule": contender.rule, "ours": contender.ours, "step": contender.step, "status": "ok"}
    session = Session(setting)
    try:
        session = contender.open(setting)
        session.restore()
        result["peak_extra_bytes"], first = clock.extra_memory(session.call)
        result["first_call_ms"] = first * 1e3
        wrong = session.check()
    except Exception as error:  # whatever other people's code raises is a reason, not an end
        result |= {"status": "failed", "reason": _words(error)}
    else:
        if wrong:
            result |= {"status": "wrong", "reason": wrong}
    return Entry(contender, session, result)


def _repeat(entry: Entry, plan: Plan, clock: Clock) -> None:
    session = entry.session
    try:
        session.restore()
        entry.samples.append(clock.seconds(session.call))
        last = entry.finished(plan)
        if last or len(entry.samples) <= DIGESTS:
            entry.digests.append(fingerprint(session.outputs()))
        wrong = session.check() if last else None
        if session.exact and len(set(entry.digests)) > 1:
            wrong = wrong or "the result differs from repeat to repeat"
    except Exception as error:
        entry.result |= {"status": "failed", "reason": _words(error)}
    else:
        if wrong:
            entry.result |= {"status": "wrong", "reason": wrong}


def _graph(entry: Entry, plan: Plan, clock: CudaClock) -> dict[str, Any]:
    """The same call as a replay of a CUDA graph: the time without launches."""
    session = entry.session
    try:
        session.restore()
        replay = clock.graphed(session.call)
        samples = []
        for _ in range(min(plan.repeats, len(entry.samples))):
            session.restore()
            samples.append(clock.seconds(replay))
        wrong = session.check()
    except Exception as error:
        return {"status": "failed", "reason": _words(error)}
    return {"status": "wrong", "reason": wrong} if wrong else {"status": "ok"} | summary(samples)


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]
