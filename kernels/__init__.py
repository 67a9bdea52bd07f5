"""Triton kernels, compiled on first call; installed as ``dstee.kernels``.

Ops: masked_sgd, drop_grow, pack_mask, counts, count_outside, count_below, growth_scale, hashed_noise, global_keep,
key_histogram. Stages of drop_grow_: sample, sweep, select_drop, commit, select_grow, small_layer, fallback. What they share has
an underscore:

  _rules      the scalar maths           _table, _upload   rows of pointers and numbers, and their way to the device
  _tiles      weights, keys, the step    _state            the memory of one update
  _threshold  the order of weights       _launch           compiler options, the current device
  _bins, _select, _undecided             finding the k-th of many keys
  _digits                                the k-th of keys of all layers, byte by byte
  _sample_size                           how much is sampled, how much is listed
"""
