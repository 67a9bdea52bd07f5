"""Microbenchmarks of dstee: ``python -m bench`` in a checkout, ``dstee bench`` where it is installed."""
