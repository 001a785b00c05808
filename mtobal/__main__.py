"""``python -m mtobal``, the same as ``mtobal``."""

import sys

from mtobal.cli import main

sys.exit(main())
