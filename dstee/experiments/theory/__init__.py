"""``dstee verify-theory``: Propositions 1 and 2 of the DST-EE paper, measured on problems whose constants are known."""

__all__: list[str] = []
