"""``dstee reproduce``: the paper's tables and figures, each from a grid file under ``protocols/``."""
