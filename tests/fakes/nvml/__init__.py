"""Build and script the stand-in for NVIDIA's library."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("standin.c")
SONAME = "libnvidia-ml.so.1"  # what pynvml loads by name


class NoCompiler(Exception):
    """This machine has no C compiler."""


def build(*, directory: Path) -> Path:
    """Compile the stand-in into `directory` and return the path of the library.

    :raises NoCompiler: when there is neither cc nor gcc.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("no C compiler (cc or gcc) to build the stand-in NVML with")
    library = directory / SONAME
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(
        [compiler, *flags, f"-Wl,-soname,{SONAME}", "-o", str(library), str(SOURCE)],
        check=True,
        capture_output=True,
        text=True,
    )
    return library


class Journal:
    """The machine that the stand-in shows: each call appends statements (see standin.c)."""

    def __init__(self, *, path: Path, library: Path) -> None:
        self.path = path
        self.library = library
        path.write_text("")

    def write(self, *statements: str) -> None:
        """Change the machine; running processes see it at their next call."""
        with self.path.open("a") as file:
            file.write("".join(f"{statement}\n" for statement in statements))

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables with which a process loads the stand-in."""
        return {
            "LD_LIBRARY_PATH": str(self.library.parent),
            "NVML_STANDIN_STATE": str(self.path),
        }
