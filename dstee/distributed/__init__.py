"""Training on several processes: the masks are those of one process, whatever the number of ranks.

``sparsify`` and ``SparseModel`` need no words of it: plain copies, DistributedDataParallel, FSDP2, HSDP and tensor parallelism
are recognised by the parameters. Weights that are cut among ranks are ranked where they lie, and nothing but counts is sent.
Copies of a model are not compared unasked, since models that are different on purpose would wait for each other: :func:`check`
does it, and so does every mask update with the environment variable ``DSTEE_CHECK_RANKS``.
"""

from dstee.distributed.check import check as check

__all__ = ["check"]
