"""``python -m dstee`` is the ``dstee`` command."""

import sys

from dstee.cli import main

if __name__ == "__main__":
    sys.exit(main())
