"""Result files of every kind, for what is shown of them; and the hostile one, whose texts try to break out."""

from __future__ import annotations

import copy
from typing import Any

from support.bench_rows import document, result, samples

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x$"
LONG = "a contender of quite a long name, as plugins may have"
PHASES = {"forward": 1.0, "backward": 2.0, "optimizer": 0.5, "masks": 0.1}
UPDATES = {
    "native": (13.2, True), "reference": (3200.0, True), "torch.topk": (618.0, False), "kthvalue": (444.0, False),
    "ITOP Masking, dstee's": (20.0, False), "rigl-torch": (4901.0, False), "sparsimony, accelerated": (99.0, False),
    LONG: (700.0, False), "native 3c21e1c": (27.0, False),
}  # fmt: skip


def hostile() -> dict[str, Any]:
    made = document({
        "native": result(samples(1)), HOSTILE: result(samples(2), ours=False, rule=HOSTILE),
        "bad": {"status": "failed", "reason": HOSTILE},
    }, case=HOSTILE)  # fmt: skip
    second = copy.deepcopy(made["rows"][0])
    second["n"] = 5000
    host = {"key": {"op": "host", "case": HOSTILE, "density": 0.1, "threads": 1}, "contenders": second["contenders"]}
    made["rows"] += [second, *_steps({HOSTILE: 4.0}, HOSTILE), host, {"key": {"op": "drop_grow"}, "error": HOSTILE}]
    made["rows"] += _scaling(HOSTILE)
    made["stamp"] = {"cpu": HOSTILE, "commit": HOSTILE, "build": {"flags": HOSTILE}}
    return made


def _steps(times: dict[str, float], case: str) -> list[dict[str, Any]]:
    ours = dict.fromkeys(("dstee", "native"), True)
    found = {
        name: result([t], phases_ms=PHASES, update_ms=0.1, sparse_share=0.05, ours=ours.get(name, False))
        for name, t in times.items()
    }
    return [
        {"key": {"op": "step", "case": case, "density": 0.1, "threads": 2, "batch": 16}, "n": 20_000_000, "contenders": found}
    ]


def _scaling(case: str = "") -> list[dict[str, Any]]:
    return [
        {
            "key": {
                "op": "scaling", "of": op, "sweep": sweep, "x": x, "case": case or f"{sweep} {x:g}", "density": 0.1,
                "dtype": dtype, "threads": threads, "swap": 0.3,
            },
            "n": 10**6, "layers": 1,
            "contenders": {
                "native": result([0.5 * max(x, 1) ** 0.9]), "torch.topk": result([9 * max(x, 1) ** 0.8], ours=False),
            },
        }
        for op in ("drop_grow", "masked_sgd") for dtype in ("float32", "bfloat16") for threads in (1, 2)
        for sweep, values in (("n", (1e3, 1e4, 1e5)), ("layers", (1, 20, 5000)), ("data", (0, 1)))
        for x in values
    ]  # fmt: skip


def every_kind() -> dict[str, dict[str, Any]]:
    """By the name of what was measured; ``all`` has rows of every op, ``nothing`` none with a figure."""
    found = {name: result(samples(t), ours=ours) for name, (t, ours) in UPDATES.items()}
    lost = {"sparsimony": {"status": "wrong", "reason": "layer 0: 3 weights differ " * 9}}
    update = document({**found, **lost}, case="resnet50")
    update["rows"] += [
        {**copy.deepcopy(update["rows"][0]), "key": {**update["rows"][0]["key"], "op": op, "density": density}}
        for op in ("masked_sgd", "drop_grow") for density in (0.05, 0.02)
    ]  # fmt: skip
    steps = {"dense": 4.0, "dstee": 4.2, "by hand": 6.0, "rigl-torch": 8.1}
    kinds = {
        "update": update["rows"], "step": [*_steps(steps, "mlp"), *_steps(steps, "vgg19")], "scaling": _scaling(),
        "host": [
            {"key": {"op": "host", "case": case, "density": 0.1, "threads": 1}, "n": 270_000, "layers": 20,
             "dense_parameters": 39, "contenders": {"dstee": result([0.1]), "SGD fused + masks": result([0.3], ours=False)}}
            for case in ("resnet20", "lenet-300-100")
        ],
        "nothing": [{"key": {"op": "drop_grow", "case": "mlp"}, "contenders": lost}],
    }  # fmt: skip
    kinds["all"] = [*kinds["update"][:2], kinds["step"][0], kinds["host"][0], *kinds["scaling"]]
    return {name: {**update, "rows": rows} for name, rows in kinds.items()}
