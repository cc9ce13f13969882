"""`python -m sgjax_server` is the `sgjax` command."""

from __future__ import annotations

import sys

from sgjax_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
