"""One row: every contender gated, then timed in turns. No number for a contender whose result is wrong.

Order for each contender: open, one call for its first time and memory, a check, then in turns (forwards, backwards, forwards:
ABBA) restore, cold cache, the timed call, a digest of its result at some repeats; the result of the last timed call is compared
with what the rule demands. On a GPU each is then replayed as a CUDA graph. The copy and the reads of :mod:`bandwidth` take part
in the turns.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from .bandwidth import Bandwidth
from .clock import Clock, CudaClock
from .digest import digest
from .results_file import Result, Roof
from .session import Contender, Session, Setting

__all__ = ["Emit", "InputsChanged", "Measured", "Plan", "measure", "reason_of", "summary"]

ROOF_REPEATS = 15
DIGESTS = 4  # of the first repeats, and of the last

Emit = Callable[[str | None, str], None]
Calls = dict[str, tuple[Callable[[], object], int]]  # and the bytes that they move


class InputsChanged(RuntimeError):
    """The contender that was told last wrote to the inputs, on which all others would be measured and judged."""


@dataclass(frozen=True)
class Plan:
    """``repeats`` of each contender; one that has used up ``budget`` seconds stops, but not before ``least`` repeats. ``roof``:
    the machine's limit takes part."""

    repeats: int = 31
    budget: float = 10.0
    least: int = 3
    roof: bool = True


class Measured(TypedDict, total=False):
    contenders: dict[str, Result]
    roof: Roof


@dataclass
class Entry:
    """A contender in the turns. ``result``: its part of the row."""

    contender: Contender
    session: Session
    result: Result
    samples: list[float] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def finished(self, plan: Plan) -> bool:
        spent = sum(self.samples)
        return len(self.samples) >= plan.repeats or (len(self.samples) >= plan.least and spent >= plan.budget)


def summary(samples: Sequence[float]) -> Result:
    """Milliseconds: all samples, their median, 20th and 80th percentile. ``noisy``: those two are over a tenth apart."""
    cut = statistics.quantiles(samples, n=10) if len(samples) > 1 else [samples[0]] * 9
    median = statistics.median(samples)
    return {
        "median_ms": median * 1e3, "p20_ms": cut[1] * 1e3, "p80_ms": cut[7] * 1e3, "repeats": len(samples),
        "noisy": cut[7] - cut[1] > 0.1 * median, "samples_ms": [s * 1e3 for s in samples],
    }  # fmt: skip


def measure(
    setting: Setting, contenders: Sequence[Contender], plan: Plan, clock: Clock, emit: Emit, roof_bytes: int | None = None
) -> Measured:
    """Contenders' results by name, and the roof's if the plan has one. ``emit(name, phase)`` is told before anything that may
    crash or hang.

    Raises:
        InputsChanged: the contender that was told last wrote to the inputs that all share.
    """
    results: dict[str, Result] = {}
    entries = []
    inputs = setting.before.tensors()
    untouched = digest(inputs)
    for contender in contenders:
        emit(contender.name, "first call")
        result, session = _first_call(contender, setting, clock)
        if digest(inputs) != untouched:
            raise InputsChanged("it wrote to the inputs that all contenders share")
        results[contender.name] = result
        if session is not None:
            entries.append(Entry(contender, session, result))
    calls: Calls = {}
    if plan.roof:
        emit(None, "roof")
        bandwidth = Bandwidth(setting.device.type, roof_bytes)
        calls = {"copy": bandwidth.copy(), **bandwidth.reads()}
    taken = _take_turns(entries, plan, clock, emit, calls)
    for entry in entries:
        if entry.result["status"] != "ok":
            continue
        entry.result.update(summary(entry.samples))
        entry.result.update({"digest": entry.digests[-1], "digests_equal": len(set(entry.digests)) == 1})
        if isinstance(clock, CudaClock):
            emit(entry.contender.name, "CUDA graph")
            entry.result["graph"] = _graph(entry, plan, clock)
    return {"contenders": results, "roof": _roof(calls, taken)} if calls else {"contenders": results}


def _first_call(contender: Contender, setting: Setting, clock: Clock) -> tuple[Result, Session | None]:
    """The session, if its first result is right."""
    result: Result = {"rule": contender.computes, "ours": contender.ours, "step": contender.step, "status": "ok"}
    try:
        session = contender.open(setting)
        session.restore()
        result["peak_extra_bytes"], first = clock.extra_memory(session.call)
        result["first_call_ms"] = first * 1e3
        wrong = session.check()
    except Exception as error:  # whatever other people's code raises is a reason, not an end
        result.update({"status": "failed", "reason": reason_of(error)})
        return result, None
    if wrong:
        result.update({"status": "wrong", "reason": wrong})
        return result, None
    return result, session


def _take_turns(entries: list[Entry], plan: Plan, clock: Clock, emit: Emit, calls: Calls) -> dict[str, list[float]]:
    """Fills the samples of all entries, forwards and backwards; returns those of the copy and the reads, which take part."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call, _ in calls.values():
        call()
    gc.collect()
    gc.disable()
    try:
        turn, left = 0, entries
        while any(not e.finished(plan) for e in left) or turn < plan.least:
            direction = 1 if turn % 2 == 0 else -1
            if calls and turn < ROOF_REPEATS:
                emit(None, "roof")
                for name, (call, _) in list(calls.items())[::direction]:
                    samples[name].append(clock.seconds(call))
            for entry in left[::direction]:
                if not entry.finished(plan):
                    emit(entry.contender.name, f"repeat {len(entry.samples) + 1}")
                    _repeat(entry, plan, clock)
            left = [e for e in left if e.result["status"] == "ok"]
            turn += 1
    finally:
        gc.enable()
    return samples


def _roof(calls: Calls, samples: dict[str, list[float]]) -> Roof:
    rate = {name: moved / statistics.median(samples[name]) * 1e-9 for name, (_, moved) in calls.items()}
    copy = rate.pop("copy")
    return {
        "copy_gb_s": copy, "read_gb_s": max(rate.values()), "reads_gb_s": rate,
        "samples_ms": {name: [s * 1e3 for s in found] for name, found in samples.items()},
    }  # fmt: skip


def _repeat(entry: Entry, plan: Plan, clock: Clock) -> None:
    session = entry.session
    try:
        session.restore()
        entry.samples.append(clock.seconds(session.call))
        last = entry.finished(plan)
        if last or len(entry.samples) <= DIGESTS:
            entry.digests.append(digest(session.outputs()))
        wrong = session.check() if last else None
        if session.exact and len(set(entry.digests)) > 1:
            wrong = wrong or "the result differs from repeat to repeat"
    except Exception as error:
        entry.result.update({"status": "failed", "reason": reason_of(error)})
    else:
        if wrong:
            entry.result.update({"status": "wrong", "reason": wrong})


def _graph(entry: Entry, plan: Plan, clock: CudaClock) -> Result:
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
        return {"status": "failed", "reason": reason_of(error)}
    if wrong:
        return {"status": "wrong", "reason": wrong}
    return {"status": "ok", **summary(samples)}


def reason_of(error: BaseException) -> str:
    """The error's class and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]
