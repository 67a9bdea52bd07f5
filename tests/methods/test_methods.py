"""Each method's choices, its exploration bonus and random seeds, and the checkpoint form."""

import dataclasses
import math

import pytest
import torch

from dstee.methods import (
    ADMM,
    DSR,
    DSTEE,
    GMP,
    MEST,
    METHODS,
    SET,
    SIS,
    SNFS,
    SNIP,
    DeepR,
    GaP,
    GraNet,
    GraSP,
    Method,
    OneShot,
    RigL,
    Static,
    SynFlow,
    growth_seeds,
    method_from_dict,
)

# name, order, updates, needs_counter, needs_gradients
TABLE = [
    (ADMM, "admm", "ADMM", "after", True, False, False),
    (GMP, "gmp", "GMP", "after", True, False, False),
    (GaP, "gap", "GaP", "after", True, False, False),
    (GraNet, "granet", "GraNet", "after", True, False, True),
    (OneShot, "one-shot", "one-shot", "after", True, False, False),
    (DSR, "dsr", "DSR", "after", True, False, False),
    (DSTEE, "dst-ee", "DST-EE", "after", True, True, True),
    (DeepR, "deepr", "DeepR", "after", True, False, False),
    (MEST, "mest", "MEST", "after", True, False, False),
    (RigL, "rigl", "RigL", "replace", True, False, True),
    (SET, "set", "SET", "after", True, False, False),
    (SIS, "sis", "SIS", "after", True, False, False),
    (SNFS, "snfs", "SNFS", "after", True, False, False),
    (SNIP, "snip", "SNIP", "after", False, False, False),
    (GraSP, "grasp", "GraSP", "after", False, False, False),
    (SynFlow, "synflow", "SynFlow", "after", False, False, False),
    (Static, "static", "static", "after", False, False, False),
]
# regrow, reset_regrown where they are not True and False
REGROWTH = {DSR: (False, False), DeepR: (True, True), MEST: (True, True)}


@pytest.mark.parametrize(("cls", "key", "name", "order", "updates", "counter", "gradients"), TABLE)
def test_table(cls, key, name, order, updates, counter, gradients):
    method = cls()
    assert METHODS[key] is cls and isinstance(method, Method)
    assert (method.name, method.key, method.order) == (name, key, order)
    assert (method.updates, method.needs_counter, method.needs_gradients) == (updates, counter, gradients)
    assert (method.regrow, method.reset_regrown) == REGROWTH.get(cls, (True, False))


def test_registry_is_complete():
    ours = {key for key, cls in METHODS.items() if cls.__module__.startswith("dstee.")}  # other tests register their own
    assert ours == {row[1] for row in TABLE}


def test_bonus_is_equation_1():
    bonus = DSTEE(c=0.5, eps=2.0).bonus(t=300, round=3)
    assert bonus.dtype == torch.float32 and bonus.shape == (5,)
    expected = torch.tensor([0.5 * math.log(300) / (n + 2.0) for n in range(5)], dtype=torch.float64)
    assert torch.equal(bonus, expected.float())
    assert not DSTEE(c=0.0).bonus(300, 3).any()


def test_paper_preset_replaces_the_step():
    assert DSTEE.paper() == DSTEE(c=1e-3, order="replace")
    assert DSTEE.paper(0.01, 0.1) == DSTEE(0.01, 0.1, order="replace") == DSTEE.paper(c=0.01, eps=0.1)


def test_exploration_in_units_of_the_gradient_is_the_default():
    assert (DSTEE().c, DSTEE().c_rel) == (None, 0.1) and DSTEE() == DSTEE(c_rel=0.1) != DSTEE(c=0.1)
    units = DSTEE(c_rel=0.25, eps=2.0).bonus(t=300, round=3)
    assert units.dtype == torch.float64 and units.tolist() == [0.25 * math.log(300) / (n + 2.0) for n in range(5)]


def test_grow_seeds_depend_on_seed_name_and_round_only():
    names = ["a", "b", "c"]
    seeds = growth_seeds(1, names, 2)
    assert growth_seeds(1, names[::-1], 2) == seeds[::-1]
    assert growth_seeds(1, ["b"], 2) == seeds[1:2] != growth_seeds(1, ["b"], 2, "other")
    drawn = [growth_seeds(seed, names, round) for seed in (0, 1) for round in range(50)]
    flat = [seed for row in drawn for seed in row]
    assert len(set(flat)) == len(flat) and all(-(2**63) <= seed < 2**63 for seed in flat)
    assert growth_seeds(0, ["fc.weight"], 0) == [-740274288325726506]  # the same on every machine


METHODS_SEEN = [
    DSTEE(),
    DSTEE(c_rel=0.5, eps=2.0),
    DSTEE.paper(0.5, 1e-3),
    DSTEE(1e-4, 2.0, regrow=False, reset_regrown=True),
    RigL(),
    RigL(order="after"),
    SET(regrow=False),
    SNFS(beta=0.5),
    DSR(threshold=0.25, share=0.5),
    DeepR(l1=0.0, noise=0.5),
    MEST(lam=0.5),
    MEST(soft=True, halve_at=0.5),
    SNIP(scope="layer"),
    GraSP(temperature=1.0),
    SynFlow(rounds=7, biases=True),
    Static(),
]


@pytest.mark.parametrize("method", METHODS_SEEN)
def test_round_trip(method):
    values = method.to_dict()
    assert all(type(value) in (str, int, float, bool) for value in values.values())
    assert method_from_dict(values) == method
    assert type(method_from_dict(values)) is type(method)


def test_the_checkpoint_form_is_stable():
    common = {"regrow": True, "reset_regrown": False}
    assert DSTEE(c=1e-3).to_dict() == {"method": "dst-ee", "order": "after", "c": 1e-3, "eps": 1.0, **common}
    assert DSTEE().to_dict() == {"method": "dst-ee", "order": "after", "c_rel": 0.1, "eps": 1.0, **common}
    assert RigL().to_dict() == {"method": "rigl", "order": "replace", **common}


def test_methods_are_frozen_and_compare_by_class():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DSTEE().c = 1.0
    assert SET() != Static() and hash(SET()) == hash(SET())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"method": "adam"},
        {"method": ["set"]},
        {"method": "set", "c": 1.0},
        {"method": "dst-ee", "c": "large"},
        {"method": "dst-ee", "c_rel": True},
        {"method": "dst-ee", "c": 1e-3, "c_rel": 0.1},
        {"method": "dst-ee", "c": None},
        {"method": "dst-ee"},
        {"method": "dst-ee", "c": 1e-3, "eps": None},
        {"method": "rigl", "order": "sometimes"},
        {"method": "rigl", "regrow": 1},
        {"method": "snip", "scope": "all"},
        {"method": "synflow", "rounds": 2.5},
    ],
)
def test_from_dict_refuses(values):
    with pytest.raises(ValueError):
        method_from_dict(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DSTEE(c=-1e-3), "c must be a finite number >= 0"),
        (lambda: DSTEE(c=math.inf), "c must be a finite number >= 0"),
        (lambda: DSTEE(c=math.nan), "c must be a finite number >= 0"),
        (lambda: DSTEE(c_rel=-0.1), "c_rel must be a finite number >= 0"),
        (lambda: DSTEE(c_rel=math.inf), "c_rel must be a finite number >= 0"),
        (lambda: DSTEE(1e-3, c_rel=0.1), "c and c_rel are both given"),
        (lambda: DSTEE(eps=0.0), "eps must be a finite number > 0"),
        (lambda: DSTEE(eps=math.nan), "eps must be a finite number > 0"),
        (lambda: RigL(order="before"), "order must be 'after' or 'replace'"),
        (lambda: SNIP(scope="all"), "scope must be 'global' or 'layer', got 'all'"),
        (lambda: GraSP(temperature=0.0), "temperature must be a finite number > 0, got 0.0"),
        (lambda: GraSP(temperature=math.nan), "temperature must be a finite number > 0, got nan"),
        (lambda: SynFlow(rounds=0), "rounds must be an int of at least 1, got 0"),
        (lambda: SynFlow(rounds=True), "rounds must be an int of at least 1, got True"),
        (lambda: SynFlow(biases=1), "biases must be True or False, got 1"),
        (lambda: SET(regrow=None), "regrow must be True or False"),
        (lambda: Static(reset_regrown="no"), "reset_regrown must be True or False"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
