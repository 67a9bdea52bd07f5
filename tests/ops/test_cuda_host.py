"""The harness that runs the CUDA kernels without a GPU: it reports planted faults and nothing in correct kernels; then the
kernels under the undefined-behaviour sanitizer."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from cuda_host import build
from cuda_host.backend import HostConfiguration, compare
from support import random_cases

from dstee import encoding, ops
from dstee.testing import assert_same_bits

pytestmark = pytest.mark.skipif(bool(build.why_not()), reason=build.why_not() or "there is a compiler")

SEEDS = range(8)

# Kernel, what the report says; None: no report, the result differs from that of the correct version.
FAULTS: list[tuple[str, str | None]] = [
    ("barrier_after_write", None),
    ("barrier_before_reuse", None),
    ("lanes_in_step", None),
    ("last_block_done", None),
    ("workspace_never_written", None),
    ("static_overflow", r"static_overflow<false>, block \d+: wrote beyond the end of its static shared memory"),
    ("dynamic_overflow", r"dynamic_overflow<false>, block \d+: wrote beyond the end of its dynamic shared memory"),
    ("past_the_workspace", r"past_the_workspace<false>: wrote beyond the end of a workspace of 6140 bytes"),
    (
        "barrier_in_a_branch",
        r"barrier_in_a_branch<false>, block \d+, thread \d+: (returns while thread \d+ waits at __syncthreads"
        r"|waits at __syncthreads \(planted.cu:\d+\), but threads of the block have returned)",
    ),
    (
        "two_barriers_that_meet",
        r"thread \d+: arrives at __syncthreads \(planted.cu:\d+\) while thread \d+ waits at __syncthreads",
    ),
    (
        "early_return",
        r"thread 70: returns while thread \d+ waits at __syncthreads"
        r"|thread \d+: waits at __syncthreads \(planted.cu:\d+\), but threads of the block have returned",
    ),
    ("lane_missing_from_a_ballot", r"thread \d+: waits at __ballot_sync \(planted.cu:\d+\), but thread \d+ has returned"),
    ("misaligned_quad", r"misaligned_quad<false>, block \d+, thread \d+: an access to a misaligned address"),
    ("two_blocks_one_address", r"block \d+, thread 0: stores to an address that block \d+ stored to in the same launch"),
    ("two_blocks_scatter", r"block \d+, thread 0: stores to an address that block \d+ stored to in the same launch"),
]
NAMES = [name for name, _ in FAULTS]


@pytest.fixture(scope="module", params=[build.PLANTED, build.PLANTED_UCONTEXT], ids=["switch", "ucontext"])
def harness(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    yield build.load(request.param)


# --- planted faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_correct_kernels_pass_under_every_schedule(harness: ModuleType, name: str) -> None:
    results = set()
    for resident in (0, 1, 2):
        harness.set_resident(resident)
        for seed in range(24):
            harness.set_seed(seed)
            results.add(tuple(harness.planted(name, True)))
    harness.set_resident(0)
    assert len(results) == 1


@pytest.mark.parametrize(("name", "text"), [f for f in FAULTS if f[1]], ids=lambda x: x if x in NAMES else "")
def test_faults_are_reported_under_every_schedule(harness: ModuleType, name: str, text: str) -> None:
    for seed in SEEDS:
        harness.set_seed(seed)
        with pytest.raises(RuntimeError, match=text):
            harness.planted(name, False)
        assert name in harness.last_report()
    harness.set_seed(0)
    harness.planted(name, True)  # the next launch is not affected


@pytest.mark.parametrize("name", [name for name, text in FAULTS if text is None])
def test_missing_barriers_change_the_result(harness: ModuleType, name: str) -> None:
    harness.set_seed(0)
    expected = harness.planted(name, True)
    changed = []
    for seed in SEEDS:
        harness.set_seed(seed)
        changed.append(harness.planted(name, False) != expected)
    assert sum(changed) >= len(SEEDS) // 4, f"{name}: found by {sum(changed)} of {len(changed)} seeds"


@pytest.mark.long
@pytest.mark.parametrize(("name", "text"), [("shift_too_far", "a shift by too much")])
def test_undefined_behaviour_is_reported(name: str, text: str) -> None:
    module = build.load(build.PLANTED_SANITIZED)
    module.planted(name, True)
    with pytest.raises(RuntimeError, match=rf"{name}<false>, block \d+, thread \d+: undefined behaviour: {text}.*\.cuh?:\d+"):
        module.planted(name, False)
    for other in NAMES:
        module.planted(other, True)


# --- CUDA's operations ---------------------------------------------------------------------------------------------------


def expected_operations(t: int) -> list[int]:
    lane = t % 32
    low, first = lane < 16, lane - lane % 8
    brev = int(f"{t:032b}"[::-1], 2)
    bits = bin(t).count("1") + (32 - t.bit_length()) + ((t & -t).bit_length())
    return [
        sum(1 << i for i in range(0, 32, 3)),
        2,
        105,
        100 + (lane if lane < 3 else lane - 3),
        100 + (lane if lane > 28 else lane + 3),
        100 + (lane ^ 8),
        496,
        7,
        38,
        0xFFFF if low else 0xFFFF0000,
        16,
        lane ^ 1,
        int(torch.tensor(float(min(lane + 1, 31))).view(torch.int32)),
        first + 3,
        lane if lane == first else lane - 1,
        100,
        2,
        bits,
        brev,
        0xF,
    ]


def test_warp_and_block_operations_match_cuda(harness: ModuleType) -> None:
    for seed in SEEDS:
        harness.set_seed(seed)
        got = harness.all_operations()
        for t in range(256):
            assert got[24 * t : 24 * t + 20] == expected_operations(t), f"seed {seed}, thread {t}"


@pytest.mark.parametrize(("blocks", "threads"), [(1, 1), (3, 33), (500, 64), (2, 1024)])
def test_grids_of_any_shape_run_to_their_end(harness: ModuleType, blocks: int, threads: int) -> None:
    for seed in SEEDS[:3]:
        harness.set_seed(seed)
        assert harness.busy(blocks, threads, 3) == 3 * blocks * ((threads + 7) // 8)
        counters = harness.counters()
        assert counters["launches"] == 1 and counters["switches"] >= 3 * blocks * threads


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 1025)])
def test_impossible_launches_are_refused(harness: ModuleType, blocks: int, threads: int) -> None:
    with pytest.raises(RuntimeError, match="busy_kernel: invalid configuration"):
        harness.busy(blocks, threads, 1)


def test_a_seed_determines_the_schedule(harness: ModuleType) -> None:
    def outcome(seed: int) -> list[int]:
        harness.set_seed(seed)
        return harness.planted("lanes_in_step", False)

    assert outcome(3) == outcome(3)
    assert len({tuple(outcome(seed)) for seed in SEEDS}) > 1


# --- what tests set and read ---------------------------------------------------------------------------------------------


def test_traffic_is_counted_by_kernel(harness: ModuleType) -> None:
    harness.clear_traffic()
    assert harness.traffic() == {}
    harness.move(5)
    harness.move(2)
    harness.busy(3, 64, 2)
    threads = 7 * 64
    moved = dict(
        launches=2,
        loaded=4 * threads,
        stored=16 * threads,
        gathered=32 * (threads + threads // 8),
        scattered=32 * threads,
        atomics=2 * threads,
    )
    still = dict(launches=1, loaded=0, stored=0, gathered=0, scattered=0, atomics=3 * 8 * 2)
    found = harness.traffic()
    assert {name.rpartition("::")[2]: counts for name, counts in found.items()} == {"move_kernel": moved, "busy_kernel": still}
    harness.clear_traffic()
    assert harness.traffic() == {}


def test_the_number_of_processors_can_be_set(harness: ModuleType) -> None:
    default = harness.processors()
    try:
        for count in (1, 132):
            harness.set_processors(count)
            assert harness.processors() == count
        with pytest.raises(ValueError, match="1 or more processors"):
            harness.set_processors(-1)
        assert harness.processors() == 132
    finally:
        harness.set_processors()
    assert harness.processors() == default >= 1


def test_workspaces_start_as_poison_of_the_seed(harness: ModuleType) -> None:
    def contents(seed: int) -> list[list[int]]:
        harness.set_seed(seed)
        return [harness.use_workspace(words, 0) for words in (1, 64, 64)]

    found = [contents(seed) for seed in SEEDS]
    assert found == [contents(seed) for seed in SEEDS]
    assert len({tuple(workspace) for call in found for workspace in call[1:]}) > 4
    assert all(any(workspace) for call in found for workspace in call)


def test_kept_workspaces_come_back_as_they_were_left(harness: ModuleType) -> None:
    harness.set_seed(1)
    try:
        harness.keep_workspace(True)
        assert harness.use_workspace(40, 7) != [7] * 40
        assert harness.use_workspace(40, 8) == [7] * 40
        assert harness.use_workspace(41, 9) != [8] * 41
        assert harness.use_workspace(40, 7) == [8] * 40
    finally:
        harness.keep_workspace(False)
    assert harness.use_workspace(40, 7) != [7] * 40
    assert harness.use_workspace(40, 7) != [7] * 40


def test_a_launch_can_be_aborted(harness: ModuleType) -> None:
    harness.take_report()
    for successes in (0, 2):
        harness.abort_after(successes)
        for _ in range(successes):
            assert harness.busy(2, 32, 1) == 8
        with pytest.raises(RuntimeError, match=r"kernel .*busy_kernel: aborted by the test"):
            harness.busy(2, 32, 1)
        assert harness.busy(2, 32, 1) == 8  # once
    harness.abort_after(1)
    harness.abort_after()
    assert [harness.busy(2, 32, 1) for _ in range(3)] == [8, 8, 8]
    assert not harness.take_report()  # the launches after an abort are not suspected


def test_configurations_set_the_harness_and_reset_it() -> None:
    module = build.load(build.PLANTED)
    default = module.processors()
    one = HostConfiguration(seed=3, variant=build.PLANTED, processors=1, list_share=0.25, tight_bounds=True)
    assert str(one) == "cuda-host-s3-planted-p1-lists0.25-tight" and str(HostConfiguration(seed=3)) == "cuda-host-s3"
    with pytest.raises(KeyError), one.active():
        assert module.processors() == 1 and module.test_limits() == (0.25, True)
        raise KeyError
    assert module.processors() == default and module.test_limits() == (1.0, False)


@pytest.mark.parametrize(("blocks", "threads"), [(54, 512), (9, 1024)])
def test_large_blocks_with_much_shared_memory(harness: ModuleType, blocks: int, threads: int) -> None:
    results = set()
    for seed in SEEDS[:2]:
        harness.set_seed(seed)
        results.add(tuple(harness.churn(blocks, threads, 2)))
    assert len(results) == 1


# --- the kernels of the package ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_kernels_have_no_undefined_behaviour() -> None:
    for number in range(0, 504, 21):
        compare(random_cases.update(number), HostConfiguration(seed=number, variant=build.SANITIZED))
    with HostConfiguration(variant=build.SANITIZED).active():
        mask = torch.rand(4097) < 0.3
        bits = ops.pack_mask(mask)
        assert torch.equal(ops.unpack_mask(bits, mask.shape), mask)
        stored = ops.encode_counts(mask.int() * 3, mask, 5)
        assert_same_bits(stored, encoding.flip_counts(mask.int() * 3, mask, 5).to(torch.int16))
        assert torch.equal(ops.decode_counts(stored, bits, 5, mask.shape), mask.int() * 3)
        assert int(ops.count_active([bits])) == int(mask.sum())
