"""Cure a latched GPU: open a CUDA context on it in a fresh process, and close it.

A GPU whose process was killed in the middle of a kernel may claim full load for ever with nothing on it.
The next context puts its counters right (nine of nine cards in Datura-ai/lium-io#1142). The child sees that
one GPU alone, and makes sure of it before it touches anything: on another one a tenant may work.

    python -m agents.node.cure GPU-UUID [LIBRARY]
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence

from agents.node.programs import that_finds_us

LIBRARY = "libcuda.so.1"
# Without persistence the driver takes 2 to 3 s to open a card, and a whole board of them one after the other.
CURE_SECONDS_MAX = 60.0
# A child in the middle of a driver call dies when that returns; nobody waits for it.
KILLED_SECONDS_MAX = 5.0
EVIDENCE_LENGTH_MAX = 300


class NotCured(Exception):
    """The GPU is as it was; the message says why in one line."""


def cure(*, gpu_uuid: str, library: str = LIBRARY, seconds_max: float = CURE_SECONDS_MAX) -> None:
    """Open and close a context on one GPU in a process of its own; takes about a second.

    :raises NotCured: when there is no libcuda, CUDA refuses, or it takes too long.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADROOM_")}
    environment["CUDA_VISIBLE_DEVICES"] = gpu_uuid
    child = subprocess.Popen(  # noqa: S603 - this file, and a UUID that NVML gave
        [sys.executable, "-m", "agents.node.cure", gpu_uuid, library],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=that_finds_us(environment),
        start_new_session=True,
    )
    try:
        _, errors = child.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired:
        _abandon(child)
        raise NotCured(f"opening a context took longer than {seconds_max:g} s") from None
    if child.returncode:
        words = errors.decode(errors="replace").strip()[-EVIDENCE_LENGTH_MAX:]
        raise NotCured(words or f"the child ended with status {child.returncode}")


def open_and_close(*, gpu_uuid: str, library: str) -> None:
    """Open and close a context on one GPU in this process.

    :raises NotCured: when there is no libcuda, CUDA refuses, or does not show that GPU.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        raise NotCured(f"{library} is not on this machine") from None
    _call(cuda, "cuInit", ctypes.c_uint(0))
    device, context = _device(cuda, gpu_uuid), ctypes.c_void_p()
    _call(cuda, "cuCtxCreate_v2", ctypes.byref(context), ctypes.c_uint(0), device)
    _call(cuda, "cuCtxDestroy_v2", context)


def main(arguments: Sequence[str]) -> int:
    """Cure the GPU that is named; return the exit status."""
    try:
        open_and_close(
            gpu_uuid=arguments[0], library=arguments[1] if len(arguments) > 1 else LIBRARY
        )
    except NotCured as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _device(cuda: ctypes.CDLL, gpu_uuid: str) -> ctypes.c_int:
    """Return the device with that UUID; CUDA counts devices in an order of its own."""
    count, device, seen = ctypes.c_int(), ctypes.c_int(), (ctypes.c_ubyte * 16)()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    for ordinal in range(count.value):
        _call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
        _call(cuda, "cuDeviceGetUuid_v2", ctypes.byref(seen), device)
        if f"GPU-{uuid.UUID(bytes=bytes(seen))}" == gpu_uuid.lower().replace("gpu-", "GPU-"):
            return device
    raise NotCured(f"CUDA does not show {gpu_uuid}")


def _call(cuda: ctypes.CDLL, name: str, *arguments: object) -> None:
    try:
        function = getattr(cuda, name)
    except AttributeError:
        raise NotCured(f"this libcuda has no {name}") from None
    code = function(*arguments)
    if code:
        raise NotCured(f"{name} answered {code}")


def _abandon(child: subprocess.Popen[bytes]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    if child.stderr is not None:
        child.stderr.close()
    try:
        child.wait(timeout=KILLED_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
