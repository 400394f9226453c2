"""The service that `install` makes, and what it refuses."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agents.node import install, notify
from agents.node.__main__ import main
from agents.node.config import parse_settings
from agents.node.loop import WAIT_SECONDS_MAX
from agents.node.notify import Notifier

SERVER = "https://market.example.com"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "image"


def unit_of(root: Path) -> Path:
    return root / "etc/systemd/system/headroom-node.service"


def config_of(root: Path) -> Path:
    return root / "etc/headroom-node.toml"


class TestInstall:
    def test_writes_a_unit_and_settings_that_the_agent_takes(self, root: Path) -> None:
        flags = ["--server", SERVER, "--name", "n-1", "--free-after", "90", "--allow-http"]
        assert main(["install", "--root", str(root), *flags]) == 0
        assert config_of(root).stat().st_mode & 0o777 == 0o600
        assert tomllib.loads(config_of(root).read_text()) == {
            "server": SERVER, "name": "n-1", "free_after": 90, "allow_http": True,
        }  # fmt: skip
        settings = parse_settings(arguments=["--config", str(config_of(root))], environment={})
        assert (settings.server_url, settings.free_after_seconds) == (SERVER, 90)
        unit = unit_of(root).read_text()
        assert f"ExecStart={sys.executable} -m agents.node --config /etc/headroom-node.toml" in unit
        (directory,) = [x for x in unit.splitlines() if x.startswith("WorkingDirectory=")]
        assert (Path(directory.partition("=")[2]) / "agents/node/__main__.py").exists()

    def test_may_be_repeated_and_keeps_the_settings(
        self, root: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["install", "--root", str(root)]) == 0
        config_of(root).write_text('name = "mine"\n')
        before = unit_of(root).stat().st_mtime_ns
        capsys.readouterr()
        assert main(["install", "--root", str(root), "--server", SERVER]) == 0
        assert unit_of(root).stat().st_mtime_ns == before
        assert config_of(root).read_text() == 'name = "mine"\n'
        assert "stays as it is" in capsys.readouterr().out

    def test_can_only_print(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["install", "--root", str(root), "--dry-run", "--server", SERVER]) == 0
        said = capsys.readouterr().out
        assert "[Service]" in said
        assert f'server = "{SERVER}"' in said
        assert not root.exists()

    def test_needs_root_on_this_machine(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        for verb in ("install", "uninstall"):
            assert main([verb]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "run it as root" in line

    def test_refuses_settings_that_the_agent_would_refuse(
        self, root: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["install", "--root", str(root), "--free-after", "soon"]) == 2
        assert "--free-after 'soon'" in capsys.readouterr().err
        assert not root.exists()

    def test_says_what_the_disk_says(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "etc").write_text("a file")
        assert main(["install", "--root", str(tmp_path)]) == 2
        assert "install failed" in capsys.readouterr().err

    def test_hardens_an_agent_that_starts_nothing(self, root: Path) -> None:
        assert main(["install", "--root", str(root)]) == 0
        lines = unit_of(root).read_text().splitlines()
        for line in (
            "NoNewPrivileges=yes", "ProtectSystem=strict", "DevicePolicy=closed",
            "StateDirectory=headroom-node", "Restart=always", "KillMode=process", "Type=notify",
            "DeviceAllow=/dev/nvidia7 rw", "EnvironmentFile=-/etc/default/headroom-node",
        ):  # fmt: skip
            assert line in lines
        (watchdog,) = [int(x.partition("=")[2]) for x in lines if x.startswith("WatchdogSec=")]
        assert watchdog > 2 * WAIT_SECONDS_MAX

    @pytest.mark.parametrize("how", [["--hook", "/bin/true"], ["--provisioner", "container"]])
    def test_lets_tenants_inherit_no_sandbox(
        self, root: Path, how: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
        assert main(["install", "--root", str(root), *how]) == 0
        settings = [x for x in unit_of(root).read_text().splitlines() if not x.startswith("#")]
        for name in ("NoNewPrivileges", "ProtectSystem", "DevicePolicy", "PrivateTmp"):
            assert not any(line.startswith(f"{name}=") for line in settings)
        assert "KillMode=process" in settings

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
    @pytest.mark.parametrize("more", [[], ["--hook", "/bin/true"], ["--state-dir", "/srv/a b"]])
    def test_makes_a_unit_that_systemd_understands(self, root: Path, more: list[str]) -> None:
        assert main(["install", "--root", str(root), *more]) == 0
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit_of(root))],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        ours = [x for x in done.stderr.splitlines() if "headroom-node" in x]
        assert ours == []


class TestUninstall:
    def test_removes_the_unit_and_keeps_the_rest(
        self, root: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["install", "--root", str(root)])
        assert main(["uninstall", "--root", str(root), "--dry-run"]) == 0
        assert unit_of(root).exists()
        assert main(["uninstall", "--root", str(root)]) == 0
        assert not unit_of(root).exists()
        assert config_of(root).exists()
        assert main(["uninstall", "--root", str(root)]) == 0
        assert "is not there" in capsys.readouterr().out

    def test_leaves_a_unit_alone_that_somebody_else_wrote(self, root: Path) -> None:
        unit_of(root).parent.mkdir(parents=True)
        unit_of(root).write_text("[Service]\n")
        assert main(["uninstall", "--root", str(root)]) == 2
        assert unit_of(root).exists()

    def test_stops_the_service_first(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[tuple[str, ...]] = []
        main(["install", "--root", str(root)])

        def systemctl(*arguments: str) -> bool:
            assert unit_of(root).exists() or arguments == ("daemon-reload",)
            told.append(arguments)
            return True

        monkeypatch.setattr(install, "_systemctl", systemctl)
        assert install._uninstall(root, dry_run=False, is_image=False) == 0
        assert told == [("disable", "--now", "headroom-node.service"), ("daemon-reload",)]

    def test_keeps_the_unit_when_the_service_cannot_be_stopped(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        main(["install", "--root", str(root)])
        monkeypatch.setattr(install, "_systemctl", lambda *_: False)
        assert install._uninstall(root, dry_run=False, is_image=False) == 2
        assert unit_of(root).exists()


class TestNotifier:
    @pytest.mark.parametrize("abstract", [False, True])
    def test_tells_the_service_manager(self, tmp_path: Path, *, abstract: bool) -> None:
        name = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind("\0" + name[1:] if abstract else name)
            manager.settimeout(5)
            Notifier(environment={"NOTIFY_SOCKET": name}).tell(notify.READY)
            assert manager.recv(100) == b"READY=1"

    def test_is_quiet_where_nobody_listens(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        Notifier(environment={}).tell(notify.ALIVE)
        notifier = Notifier(environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
        notifier.tell(notify.ALIVE)
        notifier.tell(notify.ALIVE)
        assert len(caplog.records) == 1

    def test_hears_that_the_loop_turns(self, tmp_path: Path) -> None:
        name = str(tmp_path / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(name)
            manager.settimeout(30)
            agent = subprocess.Popen(
                [
                    *(sys.executable, "-m", "agents.node", "--server", "http://127.0.0.1:9"),
                    *("--simulate", "h100x1", "--token", "t", "--config", os.devnull),
                    *("--state-dir", str(tmp_path / "state")),
                ],
                env={**os.environ, "NOTIFY_SOCKET": name},
                stderr=subprocess.PIPE,
            )
            try:
                heard = [manager.recv(100) for _ in range(3)]
            finally:
                agent.terminate()
                agent.communicate(timeout=30)
            assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            while (last := manager.recv(100)) == b"WATCHDOG=1":
                continue
            assert last == b"STOPPING=1"
            assert agent.returncode == 0
