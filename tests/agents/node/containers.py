"""A real podman for tests: installed from Debian where that is asked for, with storage of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

PACKAGES = (
    "podman",
    "runc",
    "netavark",
    "iptables",
    "busybox-static",
    "openssh-server",
    "openssh-client",
)
INSTALL_SECONDS_MAX = 600
CDI_DIRECTORY = Path("/etc/cdi")
IMAGE = "headroom.test/sshd:1"
# A container within a container may not raise the limit of processes, which podman wants to.
RUN_FLAGS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")


def require() -> None:
    """Have podman and what it needs here, or skip with the reason; in CI the packages are installed."""
    if os.geteuid() != 0:
        pytest.skip("containers with networks and limits need root")
    needed = ("podman", "runc", "busybox", "ssh", "ssh-keygen")
    missing = [name for name in needed if shutil.which(name) is None]
    if not Path("/usr/sbin/sshd").exists():
        missing.append("sshd")
    if not missing:
        return
    if not os.environ.get("CI") or shutil.which("apt-get") is None:
        pytest.skip(
            f"not installed: {', '.join(missing)} (Debian: apt-get install {' '.join(PACKAGES)})"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
    ):
        done = subprocess.run(
            ["apt-get", *command],
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS_MAX,
            env=environment,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"cannot be installed: apt-get {command[0]}: {done.stderr[-300:]}")


class Podman:
    """Storage of its own under a directory, so that nothing stays and nothing of the machine is seen."""

    def __init__(self, *, directory: Path) -> None:
        self.flags = (
            "--root", str(directory / "root"), "--runroot", str(directory / "run"),
            "--tmpdir", str(directory / "tmp"), "--network-config-dir", str(directory / "networks"),
            "--storage-driver", "vfs", "--runtime", "runc", "--cgroup-manager", "cgroupfs",
        )  # fmt: skip

    def run(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["podman", *self.flags, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"podman {arguments[0]}: {done.stderr}")
        return done.stdout

    def build_image(self, *, directory: Path) -> None:
        """Make an image of busybox and this machine's own sshd."""
        root = directory / "image"
        for name in (
            "bin",
            "etc",
            "root",
            "tmp",
            "run/sshd",
            "usr/sbin",
            "var/empty",
            "proc",
            "dev",
        ):
            (root / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(str(shutil.which("busybox")), root / "bin/busybox")
        for name in ("sh", "sleep", "cat", "echo", "id", "env", "ls", "wget"):
            (root / "bin" / name).symlink_to("busybox")
        (root / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nsshd:x:74:74:sshd:/run/sshd:/bin/false\n"
        )
        (root / "etc/group").write_text("root:x:0:\nsshd:x:74:\ntty:x:5:\n")
        (root / "etc/shadow").write_text("root:*:19000:0:99999:7:::\n")
        _copy_with_libraries(Path("/usr/sbin/sshd"), root)
        archive = directory / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(root, arcname=".")
        self.run("import", str(archive), IMAGE)

    def why_not(self) -> str:
        """Return why no container runs on this machine, or nothing where one does."""
        command = ["podman", *self.flags, "run", "--rm", *RUN_FLAGS, IMAGE, "/bin/echo", "well"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return "" if done.stdout == "well\n" else done.stderr[-300:]

    def left(self) -> dict[str, list[str]]:
        """Return the names of all containers, networks and volumes."""
        return {
            "containers": self.run("ps", "--all", "--format", "{{.Names}}").split(),
            "networks": self.run("network", "ls", "--format", "{{.Name}}").split(),
            "volumes": self.run("volume", "ls", "--format", "{{.Name}}").split(),
        }

    def close(self) -> None:
        """End every container and take their storage off this machine's mounts."""
        self.run("rm", "--all", "--force", "--time", "0", check=False)
        self.run("network", "prune", "--force", check=False)


def name_devices(*, path: Path, gpu_uuids: list[str], shown: Path) -> None:
    """Write a CDI specification of the stand-in's GPUs: each mounts a file of its own, and no device file."""
    devices = []
    for uuid in gpu_uuids:
        (shown / uuid).write_text(uuid)
        mount = {
            "hostPath": str(shown / uuid),
            "containerPath": f"/given/{uuid}",
            "options": ["ro", "bind"],
        }
        devices.append({"name": uuid, "containerEdits": {"mounts": [mount]}})
    spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(spec))


def _copy_with_libraries(program: Path, root: Path) -> None:
    told = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"(/\S+)", told)
    # The resolver of user names is loaded by name, so `ldd` does not tell of it.
    found += [str(p) for name in found[:1] for p in Path(name).parent.glob("libnss_files.so*")]
    for name in (str(program), *found):
        target = root / name.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, target)
