"""Seeds that train at once, held to trainings alone: masks and draws to the bit, sums to what rounding leaves."""

import copy
import json

import pytest
import torch
from experiments.test_train import DATA, Crash, make_config, make_data, run
from torch import nn

from dstee import CheckpointError, cli
from dstee._console import UsageError
from dstee.experiments import checkpoint
from dstee.experiments.data.batch_order import BatchOrder
from dstee.experiments.data.images import Dataset
from dstee.experiments.many_seeds import training as many_seeds
from dstee.experiments.many_seeds.stacked_mlp import StackedMLP
from dstee.experiments.many_seeds.training import ManySeeds, train_seeds
from dstee.experiments.trial import Trial

SEEDS = (3, 0, 11)
METHODS = {
    "dense": {},
    "static": {},
    "set": {},
    "rigl": {},
    "dst-ee": {"c": 0.01},
    "dst-ee c_rel": {"c_rel": 0.3},
    "gmp": {},  # its density changes
    "snfs": {},  # acts around each step
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alone(config, method, seed, data=DATA):
    trial = Trial(config, method, seed, data)
    while trial.step_number < trial.total:
        trial.step()
    return trial


def weights(trial):
    return [p.detach().clone() for p in trial.model.parameters()]


def momenta(trial):
    return [trial.optimizer.state[p].get("momentum_buffer") for p in trial.model.parameters()]


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def numbers(record):
    """A record's numbers by name, R of the layers too."""
    layers = {f"layer {i}": r for i, r in enumerate(record.get("layers") or [])}
    return {**layers, **{key: value for key, value in record.items() if isinstance(value, (int, float))}}


def masks(trial):
    return {} if trial.sparse is None else trial.sparse.masks()


def same_masks(a, b):
    return equal(masks(a).values(), masks(b).values())


# --- against trainings alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_each_seed_is_trained_as_alone(name):
    method = name.split()[0]
    config = make_config(method=method, distribution="uniform", label_smoothing=0.1, warmup_epochs=1, **METHODS[name])
    together = ManySeeds([Trial(config, method, seed, DATA) for seed in SEEDS])
    singles = [Trial(config, method, seed, DATA) for seed in SEEDS]
    assert all(equal(weights(a), weights(b)) and same_masks(a, b) for a, b in zip(together.trials, singles, strict=True))
    for t in range(1, together.total + 1):
        loss, records = together.step()
        losses, expected = zip(*(trial.step() for trial in singles), strict=True)
        assert loss == pytest.approx(sum(losses) / 3, rel=1e-5)
        for got, want in zip(records, [r for some in expected for r in some], strict=True):
            assert got["kind"] == want["kind"] and numbers(got) == pytest.approx(numbers(want), rel=1e-5)
        for a, b in zip(together.trials, singles, strict=True):
            for p, q in zip([*weights(a), *momenta(a)], [*weights(b), *momenta(b)], strict=True):
                torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
            assert same_masks(a, b), t  # no ties in these data
            assert a.sparse is None or (a.sparse.t, a.sparse.round) == (b.sparse.t, b.sparse.round) == (t, a.sparse.round)
    for a, b in zip(together.results(), [trial.result() for trial in singles], strict=True):
        parts = [(r.method, r.seed, r.accuracy, r.exploration, r.nnz, r.mean_density, r.training_flops) for r in (a, b)]
        assert parts[0] == parts[1] and a.scores == b.scores


def integers(method, seed, data):
    """A trial whose weights are whole numbers, those of the classifier so large that softmax gives 0 and 1."""
    config = make_config(
        method=method, hidden=[9], lr=0.125, lr_schedule="constant", momentum=0.5, weight_decay=0, nesterov=False, sparsity=0.5
    )
    trial = Trial(config, method, seed, data)
    with torch.no_grad():
        for name, p in trial.model.named_parameters():
            p.copy_((p * 128).round() * 64 if name.startswith("output") else (p * 8).round())
    return trial


@pytest.mark.parametrize("method", ["dense", "static", "set", "rigl", "dst-ee"])
def test_where_all_sums_are_exact_all_bits_are_equal(method):
    g = torch.Generator().manual_seed(3)
    x, y = torch.randint(-2, 3, (48, 12), generator=g).float(), torch.randint(0, 10, (48,), generator=g)
    data = Dataset("digits", x, y, x[:20], y[:20])
    together = ManySeeds([integers(method, seed, data) for seed in range(3)])
    singles = [integers(method, seed, data) for seed in range(3)]
    orders = [BatchOrder(48, 8, seed) for seed in range(3)]
    for _ in range(3):  # with one mask update; later steps need more than the 24 bits of float32
        together.step()
        for trial, order in zip(singles, orders, strict=True):
            exact, batch = copy.deepcopy(trial.model).double(), order.next()
            exact.zero_grad()
            nn.functional.cross_entropy(exact(x[batch].double()), y[batch]).backward()
            trial.step()
            for p, q in zip(trial.model.parameters(), exact.parameters(), strict=True):
                assert (p.grad - q.grad).abs().max() < 1e-30, "float64 differs in what float32's softmax takes for 0"
    for a, b in zip(together.trials, singles, strict=True):
        assert b.method in ("dense", "static") or b.sparse.round == 1
        assert equal(weights(a), weights(b)) and same_masks(a, b)
        assert equal(*([m for m in momenta(trial) if m is not None] for trial in (a, b)))
        if b.sparse is not None:
            assert equal(*([trial.sparse.counter(name) for name in masks(trial)] for trial in (a, b)))


def test_forward_and_backward_are_those_of_each_model():
    g = torch.Generator().manual_seed(0)
    models = [nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.ReLU()) for _ in range(3)]
    for model in models:
        for p in model.parameters():
            nn.init.uniform_(p, -4, 4, generator=g)
            p.data.round_()
    before = [[p.detach().clone() for p in model.parameters()] for model in models]
    stacked = StackedMLP(models)
    assert all(equal(model.parameters(), held) for model, held in zip(models, before, strict=True))
    x = torch.randint(-3, 4, (3, 6, 5), generator=g).float()
    delta = torch.randint(-3, 4, (3, 6, 3), generator=g).float()
    logits, inputs = stacked.forward(x)
    stacked.backward(delta.clone(), inputs)
    for s, model in enumerate(models):
        out = model(x[s])
        assert torch.equal(out, logits[s])
        out.backward(delta[s])
        names = dict(model.named_parameters())
        assert equal([stack.grads[s] for stack in stacked.parameters], [names[stack.name].grad for stack in stacked.parameters])
    with torch.no_grad():
        models[1][0].weight.fill_(7)  # what is written to a model is in the stack, and in no other row
    assert stacked.parameters[0].values[1].eq(7).all() and torch.equal(stacked.parameters[0].values[2], before[2][0])


def test_images_are_cropped_and_flipped_as_alone():
    flat = make_data(features=16)
    data = Dataset("digits", flat.x_train.view(-1, 1, 4, 4), flat.y_train, flat.x_test.view(-1, 1, 4, 4), flat.y_test, pad=1)
    config = make_config(augment=True, epochs=1)
    for trial in train_seeds(config, "set", SEEDS, data):
        single = alone(config, "set", trial.seed, data)
        assert trial.history[-1]["loss"] == pytest.approx(single.history[-1]["loss"], rel=1e-5) and same_masks(trial, single)


def test_settings_and_methods_train_together():
    configs = [make_config(epochs=2, **more) for more in ({"c": 0.0}, {"c": 10.0}, {"method": "set"}, {"method": "dense"})]
    members = [(config, config.method, seed) for config in configs for seed in (0, 1)]
    together = ManySeeds([Trial(*member, DATA) for member in members])
    while not together.is_done:
        together.step()
    for trial, member in zip(together.trials, members, strict=True):
        single = alone(*member)
        assert same_masks(trial, single)
        for p, q in zip(weights(trial), weights(single), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert not same_masks(together.trials[0], together.trials[2]), "c decides"


@pytest.mark.parametrize("more", [{"momentum": 0.0, "nesterov": False}, {"method": "rigl", "every": 1, "stop_fraction": 0.5}])
def test_without_momenta_and_where_they_begin_late(more):
    config = make_config(epochs=2, **more)  # RigL replaces steps: the first that is made is the 6th
    for trial in train_seeds(config, config.method, SEEDS, DATA):
        single = alone(config, config.method, trial.seed)
        assert same_masks(trial, single)
        for p, q in zip(weights(trial), weights(single), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


# --- one that diverges ---------------------------------------------------------------------------------------------------


def test_a_seed_that_diverges_ends_alone_and_that_is_kept(tmp_path):
    config = make_config()
    healthy, hurt = (ManySeeds.of(config, "dst-ee", SEEDS, DATA) for _ in range(2))
    for t in range(healthy.total):
        if t == 8:
            with torch.no_grad():
                hurt.trials[0].model.get_parameter("output.bias").fill_(torch.inf)
        healthy.step()
        hurt.step()
        if t == 11:
            checkpoint.save(tmp_path / "a", hurt.saved())
    assert [trial.diverged_at for trial in hurt.trials] == [9, None, None] and hurt.trials[0].step_number == 8
    assert [r.accuracy is None for r in hurt.results()] == [True, False, False]
    for s in (1, 2):
        assert checkpoint.digest(hurt.trials[s].state()) == checkpoint.digest(healthy.trials[s].state())
    again = ManySeeds.of(config, "dst-ee", SEEDS, DATA)
    again.restore(tmp_path / "a", checkpoint.load(tmp_path / "a"))
    while not again.is_done:
        again.step()
    assert [r.digest for r in again.results()] == [r.digest for r in hurt.results()]
    assert [r.diverged_at for r in again.results()] == [9, None, None]


def test_all_that_diverge_end_the_run_and_each_says_so(tmp_path):
    config = make_config(lr=1e30, lr_schedule="constant", seeds=2, batch_seeds=True)
    for reason in ("the loss is not finite", "it diverged"):  # and once more for those who ask later
        results, log = run(config, tmp_path / "a")
        assert [r.accuracy for r in results] == [None, None] and all(1 < r.diverged_at <= 12 for r in results)
        told = [f"dst-ee-seed{r.seed}: {reason} at step {r.diverged_at}" for r in results]
        assert sorted(w.partition(",")[0] for w in log.warnings) == told


def test_a_fault_names_the_seed(monkeypatch):
    together = ManySeeds.of(make_config(), "dst-ee", SEEDS, DATA)

    def fail():
        raise RuntimeError("a mask update is due, but ...")

    monkeypatch.setattr(together.trials[2], "optimize", fail)
    with pytest.raises(RuntimeError, match=r"^dst-ee-seed11: a mask update is due"):
        together.step()


# --- runs and their folders ----------------------------------------------------------------------------------------------

BOTH = {"compare": "dense,rigl,dst-ee", "seeds": 3, "batch_seeds": True}


def outcome(results):
    return [(r.method, r.seed, r.digest) for r in results]


def test_killed_anywhere_it_ends_with_the_same_bits_in_the_same_files(tmp_path):
    config = make_config(**BOTH)
    straight = run(config, tmp_path / "straight")[0]
    assert [r[:2] for r in outcome(straight)] == config.trials(), "in the order of single trainings"

    for kill in (3, 27, 60, 60, 30):  # in the first of three trainings, the first, the second, twice, and the last

        def crash(steps, kill=kill):
            if steps >= kill:
                raise Crash

        with pytest.raises(Crash):
            run(config, tmp_path / "killed", crash)
    assert outcome(run(config, tmp_path / "killed")[0]) == outcome(straight)
    for method, seed in config.trials():
        found = [tmp_path / name / f"{method}-seed{seed}" for name in ("straight", "killed")]
        lines = [(folder / "metrics.jsonl").read_bytes() for folder in found]
        assert lines[0] == lines[1]
        rows = [json.loads(line) for line in lines[0].splitlines()]
        assert {(row["method"], row["seed"]) for row in rows} == {(method, seed)} and rows[-1]["epoch"] == 4
        for folder in found:  # the last state is there as that of a training alone
            trial = Trial(config, method, seed, DATA)
            path = folder / "checkpoint-0000000024.dst"
            trial.restore(path, checkpoint.load(path))
            assert trial.result().digest == next(r.digest for r in straight if (r.method, r.seed) == (method, seed))
    folders = {path.name for path in (tmp_path / "straight").iterdir() if path.is_dir()}
    assert folders - {f"{m}-seed{s}" for m, s in config.trials()} == {f"{m}-seeds0-2" for m in ("dense", "rigl", "dst-ee")}


def test_masks_are_kept_for_each_seed(tmp_path):
    run(make_config(keep_masks=True, ignored_at=[4], ignored_steps=2, seeds=2, batch_seeds=True), tmp_path / "a")
    for seed in range(2):
        names = {path.name for path in (tmp_path / "a" / f"dst-ee-seed{seed}").glob("*-*")}
        assert "ignored-0000000004.json" in names and sum(name.startswith("masks-") for name in names) == 9


def test_it_is_part_of_what_a_run_is():
    assert make_config(batch_seeds=True).identity() == {**make_config().identity(), "batch_seeds": True}
    assert make_config(**BOTH).trainings() == [(m, (0, 1, 2)) for m in ("dense", "rigl", "dst-ee")]


def pieces():
    config = make_config()
    together = ManySeeds.of(config, "dst-ee", (0, 1), DATA)
    for _ in range(5):
        together.step()
    return config, together.saved()


DAMAGE = {
    "one training too few": lambda tree: tree["trials"].pop(),
    "the others' order": lambda tree: tree["trials"].reverse(),
    "another step": lambda tree: tree.update(step=6),
    "no step": lambda tree: tree.update(step="5"),
    "a step of one": lambda tree: tree["trials"][1].update(step=4),
    "no states": lambda tree: tree.update(trials=5),
    "something else": lambda tree: tree["trials"].__setitem__(1, 5),
    "an end that never was": lambda tree: tree.update(diverged=[None, 9]),
    "an end in words": lambda tree: tree.update(diverged=[None, "x"]),
    "too few ends": lambda tree: tree.update(diverged=[None]),
    "one thing more": lambda tree: tree.update(more=1),
    "other weights": lambda tree: tree["trials"][0]["model"].popitem(),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, what):
    config, tree = pieces()
    DAMAGE[what](tree)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        ManySeeds.of(config, "dst-ee", (0, 1), DATA).restore(tmp_path / "a", tree)


# --- refusals ------------------------------------------------------------------------------------------------------------


def with_tanh(hidden):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 10))


@pytest.mark.parametrize(
    ("more", "seeds", "text"),
    [
        ({"optimizer": "adam"}, (0,), "optimizer=sgd, got adam"),
        ({"precision": "bfloat16"}, (0,), "precision=float32, got bfloat16"),
        ({"method": "str"}, (0,), "^str computes its weights from others"),
        ({"model": "experiments.test_many_seeds:with_tanh"}, (0,), "alone, but 2 is a Tanh"),
        ({}, (1, 2, 1), "a seed is given twice: 1, 2, 1"),
        ({}, (), "no seeds"),
    ],
)
def test_what_cannot_train_at_once_is_refused_in_one_line(more, seeds, text):
    config = make_config(**more)
    with pytest.raises(UsageError, match=text) as caught:
        ManySeeds.of(config, config.method, seeds, DATA)
    assert "\n" not in str(caught.value)


def test_members_must_share_what_is_computed_at_once():
    one, begun = make_config(), Trial(make_config(), "set", 0, DATA)
    begun.step()
    for other, text in [
        (Trial(make_config(lr=0.2), "set", 0, DATA), "need one lr, got 0.1 and 0.2"),
        (Trial(make_config(hidden=[9, 8]), "set", 0, DATA), "need one hidden"),
        (Trial(one, "set", 0, make_data(n=40)), "the same data"),
        (begun, "set-seed0 has begun already"),
    ]:
        with pytest.raises(UsageError, match=text):
            ManySeeds([Trial(one, "dst-ee", 0, DATA), other])


def test_more_records_than_a_checkpoint_holds_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(many_seeds, "MAX_HEADER", 40 * 512)  # a seed leaves 8 updates and 4 epochs
    ManySeeds.of(make_config(), "set", (0, 1, 2), DATA)
    with pytest.raises(UsageError, match="4 trainings at once leave 48 records, a checkpoint holds 40"):
        ManySeeds.of(make_config(), "set", (0, 1, 2, 3), DATA)


def test_the_command_line_refuses_before_it_makes_a_folder(tmp_path, capsys):
    argv = ["train", "--data", "digits", "--batch-seeds", "--method", "str", "--seeds", "2", "--out", str(tmp_path / "a")]
    assert cli.main(argv) == 2
    assert "str computes its weights from others" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
