"""Many seeds of an MLP that train at once."""
