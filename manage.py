#!/usr/bin/env python3
"""The one entry: `python3 manage.py up` brings the whole market up, `--help` lists the rest.

This file alone is written so that an older Python can read it, and say what is missing.
"""

import os
import shutil
import sys

OLDEST = (3, 11)
NEWEST = (3, 13)


def use_a_suitable_python() -> None:
    """Go on with a Python we support: this one, or else the first on PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        found = shutil.which(f"python3.{minor}")
        # A shim that only says that no such version is set would run us in a circle.
        if found and os.environ.get("HEADROOM_PYTHON") != found:
            os.environ["HEADROOM_PYTHON"] = found
            os.execv(found, [found, *sys.argv])
    version = ".".join(map(str, sys.version_info[:2]))
    sys.exit(
        f"manage.py: needs Python 3.11, 3.12 or 3.13; this is {version} and none of them is on PATH"
    )


if __name__ == "__main__":
    use_a_suitable_python()
    from marketplace.management.entry import main

    sys.exit(main(sys.argv[1:]))
