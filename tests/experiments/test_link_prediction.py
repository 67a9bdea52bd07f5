"""Link prediction on a tiny graph: what is computed, what is drawn, what is reported, and that it can be resumed."""

import copy
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from support.tiny_graph import needs_geometric, tiny_graph, write_graph
from torch import nn

from dstee import cli
from dstee._console import UsageError
from dstee.experiments import data, tasks
from dstee.experiments.config import Config
from dstee.experiments.models.gcn import GCN, Encoder, _Propagation
from dstee.experiments.tasks.link_prediction import LinkPrediction, accuracy, area_under_curve
from dstee.experiments.trial import Trial


@pytest.fixture(autouse=True)
def one_thread():
    """As a run has it by default; on matrices this small more would wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def graph():
    needs_geometric()
    return tiny_graph()


def config_of(method="rigl", **given):
    settings = {"data": "wiki_vote", "method": method, "batch_size": 40, "epochs": 4, "sparsity": 0.9}
    return Config.resolve({**settings, **given})


def trial_of(graph, method="rigl", seed=0, **given):
    return Trial(config_of(method, **given), method, seed, graph)


def test_the_network_is_that_of_torch_geometric(graph):
    """Outputs and gradients, against GCNConv with the same weights."""
    from torch_geometric.nn import GCNConv

    task = trial_of(graph, "dense").task
    model, split = task.model, task.split
    convs = [GCNConv(32, 32), GCNConv(32, 32)]
    for conv, ours in zip(convs, (model.encoder.conv1, model.encoder.conv2), strict=True):
        nn.init.normal_(ours.bias)
        conv.lin.weight.data, conv.bias.data = ours.weight.detach().clone(), ours.bias.detach().clone()
    edges = torch.cat([split.message, split.message.flip(1)]).T
    z = model.encoder.norm(convs[1](convs[0](split.features, edges).relu(), edges))
    pairs, targets = task.batch(1)
    u, v = z[pairs[:, 0]], z[pairs[:, 1]]
    expected = model.fc2(model.fc1(torch.cat([u * v, (u - v).abs()], 1)).relu())[:, 0]
    got = model(pairs)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(pairs.flip(1)), got)
    weights = [conv.lin.weight for conv in convs]
    found = torch.autograd.grad(task.loss_of(got, targets), [model.encoder.conv1.weight, model.encoder.conv2.weight])
    wanted = torch.autograd.grad(nn.functional.binary_cross_entropy_with_logits(expected, targets), weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_symmetric_product_has_both_derivatives():
    matrix = torch.randn(5, 5, dtype=torch.float64)
    matrix = matrix + matrix.T
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _Propagation.apply(matrix, x).sin(), x)
    assert torch.autograd.gradgradcheck(lambda x: _Propagation.apply(matrix, x).sin(), x)


def test_messages_pass_along_message_edges_alone(graph):
    """Both ways, and from each node to itself, divided by the roots of both degrees (with loops)."""
    split = trial_of(graph, "dense").task.split
    encoder = Encoder(split.features, split.message, (4, 4))
    size = (graph.nodes, graph.nodes)
    found = torch.sparse_csr_tensor(encoder.indptr, encoder.indices, encoder.weights, size, check_invariants=True).to_dense()
    expected = torch.eye(graph.nodes)
    for u, v in split.message.tolist():
        expected[u, v] = expected[v, u] = 1
    root = expected.sum(1).rsqrt()
    torch.testing.assert_close(found, expected * root * root[:, None])
    assert torch.equal(found, found.T)


def test_exactly_both_fully_connected_layers_are_sparse(graph):
    trial = trial_of(graph, sparsity=0.9)
    assert [layer.name for layer in trial.sparse.layers.values()] == ["fc1.weight", "fc2.weight"]
    assert trial.maskable == 64 * 128 + 128 == trial_of(graph, "dense").maskable
    assert [layer.nnz for layer in trial.sparse.layers.values()] == [819, 13]  # a tenth of each


def test_flops_are_of_a_batch_and_both_kinds_of_weights(graph):
    """80 pairs by the decoder, 80 nodes by the encoder: 2 FLOPs a weight each."""
    trial = trial_of(graph, "static")
    for _ in range(8):
        trial.step()
    decoder, encoder, active = 64 * 128 + 128, 2 * 32 * 32, 819 + 13
    assert trial.result().inference_flops == pytest.approx((80 * active + 80 * encoder) / (80 * decoder + 80 * encoder))


def test_methods_of_a_seed_are_paired(graph):
    dense, static, rigl = (trial_of(graph, method) for method in ("dense", "static", "rigl"))
    assert torch.equal(static.sparse.mask("fc1.weight"), rigl.sparse.mask("fc1.weight"))
    for name, weight in dense.model.named_parameters():
        kept = weight * static.sparse.mask(name) if name in ("fc1.weight", "fc2.weight") else weight
        assert torch.equal(static.model.get_parameter(name), kept) and torch.equal(rigl.model.get_parameter(name), kept)
    for name in vars(dense.task.split):
        assert torch.equal(getattr(dense.task.split, name), getattr(rigl.task.split, name))
    rigl.task.batch(1)
    assert torch.equal(dense.task.batch(9)[0], rigl.task.batch(9)[0])
    assert not torch.equal(dense.task.batch(9)[0], trial_of(graph, "dense", 1).task.batch(9)[0])


def test_supervised_edges_come_once_in_a_pass_and_an_epoch_has_eight_batches(graph):
    """136 edges make 3 batches of 40; a pass ends in the middle of an epoch."""
    task = trial_of(graph).task
    assert task.steps_per_epoch == 8
    supervised = {tuple(pair) for pair in task.split.supervision.tolist()}
    for first in (1, 4, 7):
        batches = [task.batch(step) for step in range(first, first + 3)]
        positives = [tuple(pair) for pairs, targets in batches for pair in pairs[targets == 1].tolist()]
        assert len(positives) == len(set(positives)) == 120 and set(positives) <= supervised
        for pairs, targets in batches:
            assert pairs.shape == (80, 2) and targets.tolist() == [1] * 40 + [0] * 40
    assert not torch.equal(task.batch(1)[0], task.batch(4)[0])


def finished(trial):
    while trial.step_number < trial.total:
        trial.step()
    return trial.result()


@pytest.mark.parametrize("method", ["dst-ee", "admm"])
def test_a_resumed_training_is_equal_to_the_bit(graph, tmp_path, method):
    given = {"stop_fraction": 1.0, "epochs": 6}
    straight = trial_of(graph, method, **given)
    for _ in range(21):
        straight.step()
    saved = json.loads(json.dumps(straight.history)), straight.saved()
    tree = {**saved[1], "model": {k: v.clone() for k, v in saved[1]["model"].items()}, "history": saved[0]}
    tree = copy.deepcopy(tree)
    resumed = trial_of(graph, method, **given)
    resumed.restore(tmp_path, tree)
    assert resumed.task.position == 5
    one, other = finished(straight), finished(resumed)
    assert one.digest == other.digest and one.scores == other.scores


def test_a_position_that_is_none_is_refused(graph):
    task = trial_of(graph).task
    for position in (-1, 9, 1.0, None, True):
        with pytest.raises(ValueError, match=r"the position in the epoch must be in 0\.\.8"):
            task.load_state_dict({"position": position})


def test_accuracy_and_auc_by_hand():
    """Edges 2, .5, -1, 0; others 1, 0, -2, -3. Of 16 pairs edges win 4, 3, 2 and 2.5."""
    targets = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
    logits = torch.tensor([2.0, 0.5, -1, 0, 1, 0, -2, -3])
    assert accuracy(targets, logits) == 5 / 8
    assert area_under_curve(targets, logits) == (4 + 3 + 2 + 2.5) / 16
    lost = torch.tensor([float("nan"), float("inf")])
    assert area_under_curve(torch.tensor([1.0, 0.0]), lost) == 0 and accuracy(torch.tensor([1.0, 0.0]), lost) == 0


def test_scores_are_those_of_the_frozen_pairs(graph):
    task = trial_of(graph, "dense").task
    split = task.split
    found = task.scores()
    assert task.model.training and set(found) == {"accuracy", "auc", "validation", "validation_auc"}
    for part, name, auc in (("test", "accuracy", "auc"), ("validation", "validation", "validation_auc")):
        edges, others = (task.model(pairs).tolist() for pairs in (getattr(split, part), getattr(split, f"{part}_negatives")))
        assert found[name] == (sum(e > 0 for e in edges) + sum(o <= 0 for o in others)) / (2 * len(edges))
        won = sum((e > o) + (e == o) / 2 for e in edges for o in others)
        assert found[auc] == pytest.approx(won / len(edges) ** 2)
    assert task.scores() == found


def test_the_best_epoch_is_reported_by_validation_and_never_by_the_test(graph):
    trial = trial_of(graph, "dense")
    rows = [(0.9, 0.5, 0.6), (0.6, 0.8, 0.7), (0.7, 0.8, 0.8), (0.8, 0.7, 0.9)]  # accuracy, validation, AUC
    common = {"kind": "epoch", "method": "dense", "seed": 0, "loss": 1.0, "exploration": 1.0}
    trial.history = [
        {**common, "step": 8 * i, "epoch": i, "accuracy": a, "scores": {"validation": v, "auc": auc}}
        for i, (a, v, auc) in enumerate(rows, 1)
    ]
    found = trial.result()
    assert found.accuracy == 0.6  # the first of equals
    assert found.scores == {"validation": 0.8, "auc": 0.7, "last_accuracy": 0.8, "last_validation": 0.7, "last_auc": 0.9}
    trial.history = trial.history[:2]
    assert trial.result().scores["last_accuracy"] == trial.result().accuracy == 0.6


def test_admm_follows_thirds_and_ends_at_the_budget(graph):
    """6 epochs: dense for 2, pulled towards Z, which moves once an epoch, for 2, cut and retrained for 2."""
    trial = trial_of(graph, "admm", epochs=6, stop_fraction=1.0, sparsity=0.98)
    assert trial.updates == [16, 24, 32]
    nnz = []
    while trial.step_number < trial.total:
        trial.step()
        nnz.append(trial.sparse.nnz)
    assert nnz == [8320] * 31 + [166] * 17
    assert trial.result().mean_density == pytest.approx((32 * 8320 + 16 * 166) / (48 * 8320))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"augment": True}, "augment is for images, and tiny is a graph: expected False, got True"),
        ({"label_smoothing": 0.1}, "label_smoothing is for images"),
        ({"precision": "bfloat16"}, "precision is for images"),
        ({"train_limit": 10}, "train_limit is for images"),
        ({"validation": 10}, "validation is for images"),
        ({"model": "mlp"}, "model mlp takes classes, input_shape, which these data do not have"),
        ({"hidden": (32, 32)}, "hidden of model gcn is three widths, two of convolutions and that of FC1, got 32,32"),
        ({"batch_size": 137}, "batch_size must be at most the 136 supervised edges, got 137"),
    ],
)
def test_settings_that_do_not_fit_a_graph(graph, given, reason):
    config = config_of(**given)
    with pytest.raises(UsageError, match=reason):
        LinkPrediction(config, 0, LinkPrediction.prepare(graph, config), torch.device("cpu"))


def test_images_are_no_graph(tmp_path, capsys):
    assert cli.main(["train", "--data", "digits", "--model", "gcn", "--out", str(tmp_path / "a")]) == 2
    assert "model gcn takes features, message, which these data do not have" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("torch_geometric.data", r'needs torch-geometric: pip install "dstee\[graphs\]"'),
        ("torch_geometric.nn.conv.gcn_conv", r'needs torch-geometric: pip install "dstee\[graphs\]"'),
        ("sklearn.metrics", r'the AUC of link prediction needs scikit-learn: pip install "dstee\[cli\]"'),
    ],
)
def test_a_missing_package_is_named_before_anything_is_trained(graph, monkeypatch, module, reason):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=reason):
        trial_of(graph)


def test_a_network_of_ones_own(graph, tmp_path, monkeypatch):
    (tmp_path / "own_links.py").write_text(
        "import torch\n"
        "class Dots(torch.nn.Module):\n"
        "    def __init__(self, features, out):\n"
        "        super().__init__()\n"
        "        self.fc, self.x, self.out = torch.nn.Linear(32, 16), features, out\n"
        "    def forward(self, pairs):\n"
        "        z = self.fc(self.x)[pairs]\n"
        "        return (z[:, 0] * z[:, 1]).sum(1, keepdim=self.out)\n"
        "def make(features): return Dots(features, False)\n"
        "def wrong(features): return Dots(features, True)\n"
    )
    monkeypatch.chdir(tmp_path)
    trial = trial_of(graph, "static", model="own_links:make")
    assert list(trial.sparse.layers) == ["fc.weight"] and 0 < finished(trial).accuracy < 1
    with pytest.raises(UsageError, match=r"own_links:wrong must return logits \[2\] for two pairs of nodes, got \[2, 1\]"):
        trial_of(graph, "static", model="own_links:wrong")


def test_it_trains_from_the_command_line(graph, tmp_path, capsys):
    write_graph(tmp_path / "wiki_vote.npz", graph)
    out = tmp_path / "a"
    command = ["train", "--data", "wiki_vote", "--data-dir", str(tmp_path), "--out", str(out), "--compare", "dense,set"]
    assert cli.main([*command, "--seeds", "1", "--epochs", "12", "--batch-size", "64", "--sparsity", "0.8"]) == 0
    assert "340 training and 40 test edges" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())["results"]
    assert [row["numel"] for row in results] == [8320, 8320] and results[1]["nnz"] == 1664
    for row in results:
        assert {"validation", "auc", "validation_auc", "last_accuracy", "last_auc"} <= set(row["scores"])
        lines = (out / f"{row['method']}-seed0" / "metrics.jsonl").read_text().splitlines()
        losses = [record["loss"] for record in map(json.loads, lines) if record["kind"] == "epoch"]
        assert len(losses) == 12 and losses[-1] < 0.6 < losses[0]
    assert tasks.find_task("link-prediction") is LinkPrediction and isinstance(trial_of(graph).model, GCN)


@pytest.mark.slow
def test_wiki_vote_is_learned():
    """Its sizes, and a tenth of the protocol: 5 epochs of RigL at 90 % are far above what a guess gives."""
    folder = os.environ.get("DSTEE_DATA")
    if not folder or not (Path(folder) / "wiki_vote.npz").is_file():
        pytest.skip("needs wiki_vote.npz: set DSTEE_DATA to its folder")
    needs_geometric()
    real = data.load("wiki_vote", None)
    assert (real.nodes, len(real.edges)) == (7_115, 100_762)  # 103,689 directed ones, of which 2,927 go both ways
    trial = trial_of(real, sparsity=0.9, batch_size=2048, epochs=5)
    assert len(trial.task.split.supervision) == 34_259 and trial.task.split.message.shape == (51_389, 2)
    found = finished(trial)
    assert found.accuracy > 0.65 and found.scores["auc"] > 0.7
