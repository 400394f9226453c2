"""Look for what a tenant left in a GPU's memory, by libcuda alone and in a process of its own.

The driver clears memory that is freed; this verifies it. `check` starts one child for each GPU, because a
context that hangs must not take the agent with it, and because a context costs memory as long as its
process lives. The child takes all free memory, copies samples back, and clears what it took.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from agents.node.checks import Finding
from agents.node.programs import that_finds_us

LIBRARY = "libcuda.so.1"
CHECK_SECONDS_MAX = 60.0  # a context takes about a second, filling 192 GB less than that
CHUNK_BYTES_MAX = 1 << 30  # free memory is rarely one piece
SAMPLE_BYTES = 1 << 20
SAMPLES_MAX = 256

CLEAN, RESIDUE, BROKEN, NO_LIBRARY = 0, 10, 11, 12  # exit statuses of the child
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class CudaFailed(Exception):
    """A call of libcuda failed."""


def check(
    *,
    gpu_uuids: Sequence[str],
    seconds_max: float = CHECK_SECONDS_MAX,
    environment: Mapping[str, str] | None = None,
) -> Finding:
    """Check GPUs side by side; `passed` is `None` where there is no libcuda."""
    children = {uuid: _start(uuid, environment or os.environ) for uuid in gpu_uuids}
    bad: dict[str, str] = {}
    unknown = False
    for uuid, child in children.items():
        try:
            output, _ = child.communicate(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            bad[uuid] = f"the check took longer than {seconds_max:g} s"
            continue
        if child.returncode == NO_LIBRARY:
            unknown = True
        elif child.returncode != CLEAN:
            bad[uuid] = output.strip() or f"the check ended with status {child.returncode}"
    detail = "; ".join(f"{uuid}: {words}" for uuid, words in bad.items())
    if unknown and not bad:
        return Finding(name="residue", passed=None, detail=f"no {LIBRARY} here")
    return Finding(name="residue", passed=not bad, detail=detail, gpu_uuids=tuple(bad), reasons=bad)


def _start(gpu_uuid: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    kept = {k: v for k, v in environment.items() if not k.startswith("HEADROOM_")}
    return subprocess.Popen(
        [sys.executable, "-m", "agents.node.residue"],
        env=that_finds_us({**kept, "CUDA_VISIBLE_DEVICES": gpu_uuid}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def main() -> int:
    """Check the one GPU that this process may see; say on standard output what is wrong."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return NO_LIBRARY
    try:
        found = _dirty_samples(library)
    except CudaFailed as error:
        sys.stdout.write(f"{error}\n")
        return BROKEN
    if found:
        sys.stdout.write(f"{found} of {SAMPLES_MAX} samples of free memory are not zero\n")
        return RESIDUE
    return CLEAN


def _dirty_samples(library: ctypes.CDLL) -> int:
    """Take all free memory, count the samples that are not zero, clear it all, and give it back."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call(library, "cuInit", ctypes.c_uint(0))
    _call(library, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    _call(library, "cuCtxCreate_v2", ctypes.byref(context), ctypes.c_uint(0), device)
    chunks = _take_all(library)
    sampled, dirty = bytes(SAMPLE_BYTES), 0
    buffer = ctypes.create_string_buffer(SAMPLE_BYTES)
    total = sum(size for _, size in chunks)
    places = min(SAMPLES_MAX, total // SAMPLE_BYTES)
    for number in range(places):
        place = ctypes.c_uint64(_address(chunks, total // places * number))
        _call(library, "cuMemcpyDtoH_v2", buffer, place, ctypes.c_size_t(SAMPLE_BYTES))
        dirty += buffer.raw != sampled
    for address, size in chunks:
        _call(
            library,
            "cuMemsetD8_v2",
            ctypes.c_uint64(address),
            ctypes.c_ubyte(0),
            ctypes.c_size_t(size),
        )
    for address, _ in chunks:
        _call(library, "cuMemFree_v2", ctypes.c_uint64(address))
    _call(library, "cuCtxDestroy_v2", context)
    return dirty


def _take_all(library: ctypes.CDLL) -> list[tuple[int, int]]:
    """Allocate what is free, in chunks that get smaller when none is left of their size."""
    chunks: list[tuple[int, int]] = []
    size = CHUNK_BYTES_MAX
    while size >= SAMPLE_BYTES:
        address = ctypes.c_uint64()
        code = library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size))
        if code == 0:
            chunks.append((address.value, size))
        elif code == _OUT_OF_MEMORY:
            size //= 2
        else:
            raise CudaFailed(f"cuMemAlloc_v2 failed with {code}")
    return chunks


def _address(chunks: Sequence[tuple[int, int]], offset: int) -> int:
    """Return the address of the sample at `offset` of all chunks laid end to end."""
    for address, size in chunks:
        if offset < size:
            return address + min(offset, size - SAMPLE_BYTES)
        offset -= size
    raise CudaFailed("an offset beyond all memory")


def _call(library: ctypes.CDLL, name: str, *arguments: object) -> None:
    code = getattr(library, name)(*arguments)
    if code:
        raise CudaFailed(f"{name} failed with {code}")


if __name__ == "__main__":
    sys.exit(main())
