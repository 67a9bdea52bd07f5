"""Microbenchmarks: ``python -m bench.bench_drop_grow``, ``python -m bench.bench_masked_sgd``."""
