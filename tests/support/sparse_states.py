"""States of a small sparse model after a few steps, and edits of them."""

from __future__ import annotations

import io
import json

import torch
from support.small_models import EVERY_STEP, mlp, set_gradients

import dstee
from dstee._state_checks import digest_of
from dstee.distributed.state import fingerprint
from dstee.distributed.where import whole


def trained(model=None, steps: int = 3, **kwargs):
    model = mlp() if model is None else model
    sparse = dstee.sparsify(model, 0.6, **{"schedule": EVERY_STEP, "method": dstee.DSTEE(c=0.01), **kwargs})
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    for t in range(steps):
        set_gradients(model, t)
        sparse.step(optimizer)
    return model, sparse, optimizer


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def edit(path: str, value):
    """A change to the state at ``path``; "-" deletes, a function maps the old value."""

    def change(state):
        *way, last = path.split("/")
        target = state
        for key in way:
            target = target[key]
        if isinstance(value, str) and value == "-":
            del target[last]
        else:
            target[last] = value(target[last]) if callable(value) else value

    return change


def with_head(state, change, seal: bool = True):
    """Another head in ``state``; ``seal``: with its own digest."""
    head = json.loads(state["head"])
    change(head)
    if seal:
        head["digest"] = digest_of({key: value for key, value in head.items() if key != "digest"})
    state["head"] = json.dumps(head)
    return state


def seal_tensors(state):
    """Fingerprints for the tensors as they are."""

    def change(head):
        for name, layer in head["layers"].items():
            tensors = state["layers"][name]
            flat = {"mask": tensors["mask"], "counts": tensors.get("counts")}
            flat |= {f"kept.{key}": t for key, t in tensors.get("kept", {}).items()}
            for key in layer["fingerprints"]:
                layer["fingerprints"][key] = fingerprint(flat[key].reshape(-1), whole(flat[key].numel()))

    return with_head(state, change)


def digest(sparse: dstee.SparseModel) -> str:
    return sparse.state_dict(full=True)["digest"]
