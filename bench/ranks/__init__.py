"""``python -m bench ranks``: what training on several processes sends for a mask update."""
