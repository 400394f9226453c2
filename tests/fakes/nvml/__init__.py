"""Build and script the stand-ins for NVIDIA's libraries: libnvidia-ml.so.1 and libcuda.so.1.

`machine.c` says which statements the journal knows; `Journal` writes the common ones.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).parent
SONAME = "libnvidia-ml.so.1"  # what pynvml loads by name
CUDA_SONAME = "libcuda.so.1"
NVML_SOURCES = (
    "machine.c", "library.c", "figures.c", "health.c", "settings.c", "events.c",
)  # fmt: skip
CUDA_SOURCES = ("machine.c", "cuda.c")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")
SHARED = ("-O1", "-fvisibility=hidden", "-shared", "-fPIC", "-pthread")

GPU_LOST = 15  # NVML_ERROR_GPU_IS_LOST
NOT_SUPPORTED = 3
NO_PERMISSION = 4
MEMORY_NOT_TOLD = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


class NoCompiler(Exception):
    """This machine has no C compiler."""


def compiler() -> str:
    """Return the C compiler of this machine.

    :raises NoCompiler: when there is neither cc nor gcc.
    """
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if found is None:
        raise NoCompiler("no C compiler (cc or gcc) to build the stand-in NVML with")
    return found


def build(*, directory: Path, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compile both stand-ins into `directory` and return the path of the NVML one.

    :raises NoCompiler: when there is neither cc nor gcc.
    """
    for soname, names in ((SONAME, NVML_SOURCES), (CUDA_SONAME, CUDA_SOURCES)):
        sources = [str(HERE / name) for name in names]
        target = ["-o", str(directory / soname), f"-Wl,-soname,{soname}"]
        subprocess.run(
            [compiler(), *FLAGS, *SHARED, *extra_flags, *target, *sources],
            check=True,
            capture_output=True,
            text=True,
        )
    return directory / SONAME


def real_header_directory() -> Path | None:
    """Return where NVIDIA's own nvml.h lies, which the package nvidia-nvml-dev brings, if it is installed."""
    package = importlib.util.find_spec("nvidia")
    for root in (package.submodule_search_locations or []) if package else []:
        for header in sorted(Path(root).glob("*/include/nvml.h")):
            return header.parent
    return None


def compare_with_header(*, include: Path, sources: Path = HERE) -> str:
    """Let the compiler compare the stand-in with the nvml.h in `include`; return what differs, or nothing.

    :raises NoCompiler: when there is neither cc nor gcc.
    """
    names = [str(sources / name) for name in NVML_SOURCES]
    flags = ("-std=c11", "-D_GNU_SOURCE", "-Werror", "-DSTANDIN_REAL_HEADER", "-fsyntax-only")
    done = subprocess.run(
        [compiler(), *flags, f"-I{include}", *names], check=False, capture_output=True, text=True
    )
    return done.stderr if done.returncode else ""


class Journal:
    """The machine that the stand-ins show: each call appends statements (see machine.c)."""

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
        """Return the variables with which a process loads the stand-ins."""
        return {
            "LD_LIBRARY_PATH": str(self.library.parent),
            "NVML_STANDIN_STATE": str(self.path),
        }

    @property
    def cuda_library(self) -> Path:
        """Return the path of the stand-in libcuda.so.1."""
        return self.library.with_name(CUDA_SONAME)

    def set(self, index: int | str, /, **attributes: int | str | None) -> None:
        """Set attributes of one GPU, or of all with `*`; `None` is what the product does not have."""
        self.write(
            *(
                f"gpu {index} {name} {'NA' if value is None else value}"
                for name, value in attributes.items()
            )
        )

    def start_process(
        self,
        index: int,
        *,
        pid: int,
        kind: str = "C",
        memory_bytes: int | None = None,
        sm_percent: int = 0,
        memory_percent: int = 0,
        part: tuple[int, int] | None = None,
        name: str | None = None,
    ) -> None:
        """Let a process open a compute (C), graphics (G) or MPS (M) context on a GPU or a MIG part."""
        memory = MEMORY_NOT_TOLD if memory_bytes is None else memory_bytes
        where = "" if part is None else f" {part[0]} {part[1]}"
        if name is not None:
            self.write(f"process_name {pid} {name}")
        self.write(f"gpu {index} proc {pid} {kind} {memory} {sm_percent} {memory_percent}{where}")

    def end_process(self, index: int | str, *, pid: int | None = None) -> None:
        """Let one process leave the GPU, or all."""
        self.write(f"gpu {index} proc- {'*' if pid is None else pid}")

    def xid(self, index: int, *, xid: int) -> None:
        """Report an Xid to the event sets that wait for one."""
        self.write(f"xid {index} {xid}")

    def event(self, index: int, *, event_type: int, data: int = 0) -> None:
        """Report any event by NVML's type bit."""
        self.write(f"event {index} {event_type} {data}")

    def refuse(self, index: int | str | None, *, function: str, code: int) -> None:
        """Let `function` answer `code` on a GPU (`None`: a function that has none); 0 clears."""
        self.write(
            f"err {function} {code}" if index is None else f"gpu {index} err {function} {code}"
        )

    def hang(self, *, function: str, seconds: float) -> None:
        """Let `function` sleep on any GPU; 0 lets go of those that sleep, too."""
        self.write(f"hang {function} {round(seconds * 1000)}")

    def energy(self, index: int | str, *, millijoules: int) -> None:
        """Set the energy counter; less than before is what a reloaded driver shows."""
        self.write(f"gpu {index} energy {millijoules} {_now_microseconds()}")

    def energy_rate(self, index: int | str, *, milliwatts: int) -> None:
        """Let the energy counter grow from now on."""
        self.write(f"gpu {index} energy_rate {milliwatts} {_now_microseconds()}")

    def samples(self, index: int | str, *, percents: list[int]) -> None:
        """Append to the driver's buffer of utilisation samples; the last one is of now."""
        values = " ".join(map(str, percents))
        self.write(f"gpu {index} samples @{_now_microseconds()} {values}")

    def field(self, index: int | str, *, field_id: int, value: int | None) -> None:
        """Set what a field value answers."""
        self.write(f"gpu {index} field {field_id} {'NA' if value is None else value}")

    def mig_part(
        self, index: int, *, place: int, uuid: str, gpu_instance: int, memory_mebibytes: int,
        compute_instance: int = 0, multiprocessors: int = 16, slices: int = 1,
    ) -> None:  # fmt: skip
        """Cut a part off a GPU in MIG mode."""
        self.write(
            f"gpu {index} migdev {place} {uuid} {gpu_instance} {compute_instance}"
            f" {memory_mebibytes} {multiprocessors} {slices} {slices}"
        )

    def nvlink(self, index: int | str, *, link: int, up: bool) -> None:
        """Take a link down or bring it up."""
        self.write(f"gpu {index} nvlink {link} {int(up)}")


def _now_microseconds() -> int:
    return time.time_ns() // 1000
