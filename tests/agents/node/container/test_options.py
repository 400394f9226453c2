"""What an owner may set about containers, and what is refused."""

from __future__ import annotations

import shutil

import pytest

from agents.node.config import BadSetting, parse_settings
from agents.node.provision.container import Options
from agents.node.provision.container.options import BadOption, parse_options
from tests.agents.node.container.bench import IMAGE, Bench


class TestOptions:
    def parse(self, **given: str) -> Options:
        values = {"runtime": "/bin/podman-x", **given}
        return parse_options(given=lambda name: values.get(name, ""), name="node-1")

    @pytest.fixture(autouse=True)
    def _runtime(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: name if "absent" not in name else None)

    def test_are_read_from_the_settings(self) -> None:
        options = self.parse(
            image=IMAGE, runtime_flags="--root '/x y'", port_range="4000-4001", entry="/init ssh",
            image_prefixes="a.example/, b.example/",
        )  # fmt: skip
        assert options.ssh_host == "node-1"
        assert options.runtime_flags == ("--root", "/x y")
        assert options.entry == ("/init", "ssh")
        assert options.ports == range(4000, 4002)
        assert options.image_prefixes == ("a.example/", "b.example/")

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("runtime", "lxc"),
            ("runtime", "podman-absent"),
            ("port_range", "1-2"),
            ("port_range", "5000-4000"),
            ("port_range", "x"),
            ("runtime_flags", "'open"),
            ("run_flags", "--privileged"),
            ("run_flags", "--privileged=true"),
            ("run_flags", "--ipc=host"),
            ("run_flags", "--ipc host"),
            ("run_flags", "--cap-add SYS_ADMIN"),
            ("run_flags", "--security-opt=seccomp=unconfined"),
        ],
    )
    def test_that_cannot_be_used_are_refused_by_name(self, name: str, text: str) -> None:
        with pytest.raises(BadOption, match="--" + name.replace("_", "-")):
            self.parse(**{name: text})

    def test_of_an_owner_may_tune_a_container(self) -> None:
        assert (
            self.parse(run_flags="--cpuset-cpus 0-31 --ipc=private").run_flags[0] == "--cpuset-cpus"
        )


class TestSettings:
    SERVER = ("--server", "https://market.example.com", "--state-dir", "/nonexistent")

    def test_ask_for_containers(self, bench: Bench) -> None:
        settings = parse_settings(
            arguments=[*self.SERVER, "--provisioner", "container", "--image", IMAGE],
            environment={"HEADROOM_RUNTIME": str(bench.podman.path), "HEADROOM_NAME": "n1"},
        )
        options = settings.container()
        assert options is not None
        assert options.image == IMAGE
        assert options.ssh_host == "n1"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--provisioner", "lxc"],
            ["--provisioner", "hook"],
            ["--provisioner", "container", "--hook", "/bin/true"],
            ["--provisioner", "container", "--simulate", "h100x1"],
            ["--provisioner", "container", "--runtime", "/nonexistent/podman"],
        ],
    )
    def test_that_contradict_each_other_are_refused(self, arguments: list[str]) -> None:
        with pytest.raises(BadSetting):
            parse_settings(arguments=[*self.SERVER, *arguments], environment={})
