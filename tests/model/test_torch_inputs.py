"""SparseSGD with the inputs of PyTorch's own optimizer tests, with all masks True and at 60 % sparsity."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from support.small_models import assert_invariant, mlp, set_gradients
from torch.testing._internal.common_optimizers import optim_error_inputs_func_sgd, optim_inputs_func_sgd

import dstee

INPUTS = [(case.desc, case.kwargs) for case in optim_inputs_func_sgd("cpu")]
ERRORS = [case for case in optim_error_inputs_func_sgd("cpu", torch.float32)]


@pytest.mark.parametrize(("fused", "foreach"), [(None, None), (None, True), (None, False), (True, None)])
@pytest.mark.parametrize("sparsity", [0.0, 0.6])
@pytest.mark.parametrize(("name", "options"), INPUTS, ids=[name for name, _ in INPUTS])
def test_inputs(name: str, options: dict[str, Any], sparsity: float, fused: bool | None, foreach: bool | None) -> None:
    models = [mlp(), mlp()]
    sparse = dstee.sparsify(models[0], {"0.weight": sparsity, "3.weight": sparsity}, method=dstee.methods.Static())
    models[1].load_state_dict(copy.deepcopy(models[0].state_dict()))
    options = options | {"foreach": foreach, "fused": fused}
    ours = dstee.SparseSGD(models[0].parameters(), sparse, **copy.deepcopy(options))
    theirs = torch.optim.SGD(models[1].parameters(), **copy.deepcopy(options))
    masks = {name: mask.float() for name, mask in sparse.masks().items()}
    for t in range(7):
        set_gradients(models[0], t)
        set_gradients(models[1], t)
        for name, mask in masks.items():
            models[1].get_parameter(name).grad.mul_(mask)
        sparse.step(ours)
        theirs.step()
        for name, mask in masks.items():  # -0.0 * weight_decay and the like leave zeros
            models[1].get_parameter(name).data.mul_(mask)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert_invariant(sparse, ours)


@pytest.mark.parametrize("case", ERRORS, ids=[case.optimizer_error_input.desc for case in ERRORS])
def test_error_inputs(case: Any) -> None:
    """The same refusals in the same words, where torch's test names them."""
    error, sparse = case.optimizer_error_input, dstee.sparsify(mlp(), 0.6)
    with pytest.raises(case.error_type) as raised:
        dstee.SparseSGD(error.params, sparse, **error.kwargs)
        pytest.fail("not refused")
    assert case.error_regex in str(raised.value) or re.search(case.error_regex, str(raised.value))
