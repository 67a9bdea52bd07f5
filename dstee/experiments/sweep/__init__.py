"""``dstee sweep``: the trainings of a grid file, in several processes."""
