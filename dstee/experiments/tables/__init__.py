"""``dstee table``: rows compared with each other, in Markdown, CSV and LaTeX."""
