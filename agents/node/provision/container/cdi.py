"""Which GPUs the container runtime can be asked for by name: the specifications of CDI on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# Where podman and docker look (CDI specification, section "specification location").
DIRECTORIES = (Path("/etc/cdi"), Path("/var/run/cdi"))
SPEC_BYTES_MAX = (
    4 * 1024 * 1024
)  # a specification of 16 GPUs cut into 7 parts each takes about 200 KiB

# `nvidia-ctk cdi generate` writes YAML, others JSON. Both name a device in one line, so that no YAML parser
# is needed to find the names.
_KIND = re.compile(r"""["']?\bkind["']?\s*:\s*["']?nvidia\.com/gpu\b""")
_NAME = re.compile(r"""["']?\bname["']?\s*:\s*["']?([A-Za-z0-9][A-Za-z0-9_.:-]*)""")


def devices(*, directories: Iterable[Path] = DIRECTORIES) -> frozenset[str]:
    """Return the names of all devices of the kind `nvidia.com/gpu`."""
    names: set[str] = set()
    for directory in directories:
        for suffix in ("*.json", "*.yaml", "*.yml"):
            for path in sorted(directory.glob(suffix)):
                text = _read(path)
                if _KIND.search(text):
                    names.update(_NAME.findall(text))
    return frozenset(names)


def _read(path: Path) -> str:
    """Return a file's text; nothing of one that cannot be read, which the runtime cannot read either."""
    try:
        with path.open("rb") as file:
            return file.read(SPEC_BYTES_MAX).decode(errors="replace")
    except OSError:
        return ""
