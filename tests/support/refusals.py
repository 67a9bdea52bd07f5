"""Refusals that all ranks must make together."""

from __future__ import annotations

from collections.abc import Sequence

from support.processes import Outcome

__all__ = ["refusal"]


def refusal(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    """The error (type, text) that every rank has raised.

    Raises:
        AssertionError: a rank returned, died or hung, or raised another error than the first.
    """
    for rank, outcome in enumerate(outcomes):
        assert outcome.error is not None, f"rank {rank} refused nothing"
        assert outcome.error[0] not in ("dead", "hangs", "DistBackendError"), f"rank {rank}: {outcome.error}\n{outcome.log}"
        assert outcome.error == outcomes[0].error, f"rank {rank}: {outcome.error}, rank 0: {outcomes[0].error}\n{outcome.log}"
    assert outcomes[0].error is not None
    return outcomes[0].error
