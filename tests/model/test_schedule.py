"""When updates fall and how much they swap: tables worked by hand."""

import math
from fractions import Fraction

import pytest

from dstee.schedule import ConstantDrop, CosineDrop, LinearDrop, UpdateSchedule


def test_updates_fall_on_multiples_inside_the_open_interval():
    schedule = UpdateSchedule(every=3, stop=12)
    assert [t for t in range(-6, 20) if schedule.is_due(t)] == [3, 6, 9]
    assert [t for t in range(9) if UpdateSchedule(every=1, stop=4).is_due(t)] == [1, 2, 3]
    assert not any(UpdateSchedule(every=5, stop=5).is_due(t) for t in range(20))


def test_without_a_stop_updates_never_end():
    schedule = UpdateSchedule(every=100)
    assert schedule.drop == ConstantDrop(0.3)
    assert schedule.is_due(10**9) and not schedule.is_due(0) and schedule.fraction(10**9) == 0.3
    assert UpdateSchedule(stop=500).drop == CosineDrop(0.3)


@pytest.mark.parametrize(
    ("drop", "table"),
    [
        (ConstantDrop(0.3), {0: 0.3, 300: 0.3, 1200: 0.3, 5000: 0.3}),
        # cos 0, 60, 90, 120, 180 degrees = 1, 1/2, 0, -1/2, -1
        (CosineDrop(0.4), {0: 0.4, 400: 0.3, 600: 0.2, 800: 0.1, 1200: 0.0, 5000: 0.0}),
        (CosineDrop(0.5, floor=0.1), {0: 0.5, 400: 0.4, 600: 0.3, 800: 0.2, 1200: 0.1, 5000: 0.1}),
        (LinearDrop(0.4), {0: 0.4, 300: 0.3, 600: 0.2, 900: 0.1, 1200: 0.0, 5000: 0.0}),
        (LinearDrop(0.5, floor=0.1), {0: 0.5, 300: 0.4, 600: 0.3, 1200: 0.1, 5000: 0.1}),
    ],
)
def test_drop_tables(drop, table):
    schedule = UpdateSchedule(every=100, stop=1200, drop=drop)
    for t, fraction in table.items():
        assert schedule.fraction(t) == drop(t, 1200) == pytest.approx(fraction, abs=1e-15)


def test_cosine_to_a_floor_equals_the_chained_form():
    # CosineAnnealingLR's recursion, which ITOP steps every iteration; the exact values decide the ceil.
    stop, floor, value = 2000, 0.005, 0.5
    drop = CosineDrop(0.5, floor)
    for t in range(1, stop):
        value = floor + (value - floor) * (1 + math.cos(math.pi * t / stop)) / (1 + math.cos(math.pi * (t - 1) / stop))
        assert drop(t, stop) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("fraction", "nnz", "k"),
    [(0.3, 10, 3), (0.3, 11, 4), (0.3, 1, 1), (0.3, 0, 0), (0.0, 100, 0), (1.0, 7, 7), (0.5, 7, 4), (1e-9, 5, 1)],
)
def test_swap_count(fraction, nnz, k):
    assert UpdateSchedule(drop=ConstantDrop(fraction)).swap_count(nnz, 100) == k


def test_swap_count_is_the_ceiling_of_the_float64_product():
    schedule = UpdateSchedule(every=100, stop=10_000, drop=CosineDrop(0.3))
    for t in range(100, 10_000, 100):
        for nnz in (1, 999, 2_550_291, 2**40 + 1):
            product = schedule.fraction(t) * nnz  # float64, then exact
            assert schedule.swap_count(nnz, t) == math.ceil(Fraction(product))


SCHEDULES = [
    UpdateSchedule(),
    UpdateSchedule(7, None, ConstantDrop(0.25)),
    UpdateSchedule(100, 10_000),
    UpdateSchedule(1000, 62_500, CosineDrop(0.5, 0.005)),
    UpdateSchedule(10, 99, LinearDrop(0.2, 0.1)),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_round_trip(schedule):
    values = schedule.to_dict()
    assert all(type(value) in (str, int, float) for value in values.values())
    assert UpdateSchedule.from_dict(values) == schedule
    assert hash(UpdateSchedule.from_dict(values)) == hash(schedule)


def test_the_checkpoint_form_is_stable():
    values = {"every": 1000, "stop": 62_500, "drop": "cosine", "initial": 0.5, "floor": 0.005}
    assert SCHEDULES[3].to_dict() == values
    assert SCHEDULES[0].to_dict() == {"every": 100, "drop": "constant", "fraction": 0.3}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"every": 100},
        {"every": 100, "drop": "square", "initial": 0.3},
        {"every": 100, "drop": ["cosine"], "initial": 0.3},
        {"every": 100, "drop": "constant"},
        {"every": 100, "drop": "constant", "fraction": "much"},
        {"every": 100, "drop": "constant", "fraction": 0.3, "floor": 0.1},
        {"every": 100, "drop": "cosine", "initial": 0.3},
        {"stop": 100, "drop": "constant", "fraction": 0.3},
        {"every": 0, "drop": "constant", "fraction": 0.3},
    ],
)
def test_from_dict_refuses(values):
    with pytest.raises(ValueError):
        UpdateSchedule.from_dict(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UpdateSchedule(every=0), "every must be"),
        (lambda: UpdateSchedule(every=None), "every must be"),
        (lambda: UpdateSchedule(every=True), "every must be"),
        (lambda: UpdateSchedule(every=10.0), "every must be"),
        (lambda: UpdateSchedule(stop=0), "stop must be"),
        (lambda: UpdateSchedule(drop=CosineDrop(0.3)), "stop is None: give stop="),
        (lambda: UpdateSchedule(drop=LinearDrop(0.3)), "stop is None: give stop="),
        (lambda: UpdateSchedule(drop=0.3), "drop must be a ConstantDrop"),
        (lambda: ConstantDrop(1.1), "fraction must be in"),
        (lambda: ConstantDrop(math.nan), "fraction must be in"),
        (lambda: CosineDrop(-0.1), "initial must be in"),
        (lambda: CosineDrop(0.1, floor=0.2), "floor must be in"),
        (lambda: LinearDrop(0.1, floor=-0.1), "floor must be in"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
