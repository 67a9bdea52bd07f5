"""Kernels compiled on first call; installed as ``dstee.kernels``."""
