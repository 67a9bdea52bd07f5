"""``masked_sgd_``: one SGD step on the active weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dstee import _checks, sgd_rule
from dstee.ops._call import call, declare
from dstee.sgd_rule import SGDRule

declare(
    "masked_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor[] mask_bits, float[] sgd, Tensor? lr, "
    "Tensor? grad_scale, Tensor? found_inf, bool packed_momenta=False) -> ()",
    lambda *args: None,
)


def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor] | None,
    mask_bits: Sequence[Tensor],
    *,
    lr: float | Tensor | None = None,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first_step: bool = False,
    sgd: SGDRule | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    packed_momenta: bool = False,
) -> None:
    """One SGD step on the active weights of all layers, in place; inactive weights and momenta are not touched.

    In float32, each operation rounded once: ``d = g / grad_scale + weight_decay*w``;
    ``m = momentum*m + (1-dampening)*d`` (``m = d`` on the first step); ``u = d + momentum*m`` with ``nesterov``, else
    ``m``; ``w = w - lr*u`` (paper, Algorithm 1: SGD on the sparse weights, with :class:`torch.optim.SGD`'s definitions).

    Args:
        params: weights, float32, bfloat16 or float16, dense storage; all on one device.
        grads: gradients at all positions; shape, dtype, device and strides of the weights.
        momenta: momentum buffers, like ``grads``; may be None when ``momentum`` is 0.
        mask_bits: uint8 [ceil(n/8)] each, as :func:`pack_mask` makes them.
        lr: a float or a one-element tensor on the same device (read there, no host sync).
        first_step: the momentum buffers are written, not read.
        sgd: ``lr`` to ``first_step`` as one value, instead of them.
        grad_scale: one-element tensor that divides the gradients (a GradScaler's scale).
        found_inf: one-element tensor; where it is not 0, nothing changes.
        packed_momenta: the momenta are those of the active weights alone: [nnz] each, 1-D, in the order of the weights in
            memory. Less memory and less to move; the weights' bits are the same. Not on GPU kernels.

    Raises:
        TypeError, ValueError: an argument does not fit; the text names it and its list index. Nothing has changed then.
    """
    params = _checks.tensor_list("params", params)
    if not params:
        return
    grads = _checks.tensor_list("grads", grads, len(params))
    momenta = _checks.tensor_list("momenta", momenta, len(params), optional=True)
    mask_bits = _checks.tensor_list("mask_bits", mask_bits, len(params))
    device = params[0].device
    rule = _one_rule(sgd, lr, momentum, dampening, weight_decay, nesterov, maximize, first_step)
    _checks.check_rule(rule, momenta, device)
    _checks.check_scalar_tensor("grad_scale", grad_scale, device)
    _checks.check_scalar_tensor("found_inf", found_inf, device)
    checked(params, grads, momenta, mask_bits, rule, grad_scale, found_inf, packed_momenta)


def checked(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    mask_bits: list[Tensor],
    rule: SGDRule,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    packed_momenta: bool = False,
) -> None:
    """:func:`masked_sgd_` for an optimizer, which has made the lists itself and checked the rule."""
    used = momenta if rule.momentum != 0 else []
    packed = packed_momenta and bool(used)
    call(
        "masked_sgd_", params[0].device,
        lambda: _checks.check_layers(params, mask_bits, grads=grads, momenta=used, packed_momenta=packed),
        params, grads, used, mask_bits, *sgd_rule.pack(rule), grad_scale, found_inf, packed,
        options=("packed_momenta",) if packed else (),
    )  # fmt: skip


def _one_rule(sgd: SGDRule | None, lr: float | Tensor | None, *rest: Any) -> SGDRule:
    """The rule of :func:`masked_sgd_`, given whole or by its fields."""
    if sgd is None:
        if lr is None:
            raise TypeError("masked_sgd_ needs lr, or the whole rule: sgd=SGDRule(lr, ...)")
        return SGDRule(lr, *rest)
    if lr is not None or any(rest):
        raise TypeError("masked_sgd_ got sgd and fields of it: pass the rule whole, or lr, momentum, ... without it")
    return sgd
