"""Every setting that cannot be used is named in one line, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.node.__main__ import EXIT_CANNOT_RUN, main
from agents.node.config import BadSetting, Settings, parse_settings
from agents.node.simulated import BadFleet, parse_fleet
from agents.node.workloads import MIXED, Workload

SERVER = ["--server", "https://market.example.com"]


def parse(*arguments: str, **environment: str) -> Settings:
    return parse_settings(arguments=arguments, environment=environment)


class TestSettings:
    def test_come_from_the_command_line_before_the_environment(self) -> None:
        settings = parse(
            "--name", "a", HEADROOM_NAME="b", HEADROOM_SERVER="https://m.example/", HEADROOM_TOKEN="t"
        )  # fmt: skip
        assert (settings.name, settings.server_url, settings.token) == (
            "a",
            "https://m.example",
            "t",
        )

    def test_do_not_show_the_token(self) -> None:
        assert "hush" not in repr(parse(*SERVER, "--token", "hush"))

    def test_name_the_owners_scheduler(self) -> None:
        assert parse(*SERVER).scheduler_hook is None
        settings = parse(*SERVER, HEADROOM_SCHEDULER_HOOK="/bin/true")
        assert settings.scheduler_hook == Path("/bin/true").resolve()

    def test_need_no_server_to_look_once(self) -> None:
        assert parse("--once").state_dir is None

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "HEADROOM_SERVER is missing"),
            (["--server", "market.example.com"], "no server address"),
            (["--server", "ftp://market.example.com"], "no server address"),
            (["--server", "https://u:p@market.example.com"], "no user name"),
            (["--server", "https://market.example.com:x"], "no server address"),
            (["--server", "https://market.example.com/?a=b"], "no server address"),
            (["--server", "http://market.example.com"], "in the clear"),
            ([*SERVER, "--name", "a b"], "--name 'a b'"),
            ([*SERVER, "--name", "-"], "--name '-'"),
            ([*SERVER, "--simulate", "h100"], "PRODUCTxCOUNT"),
            ([*SERVER, "--free-after", "soon"], "--free-after 'soon'"),
            ([*SERVER, "--free-after", "nan"], "--free-after"),
            ([*SERVER, "--free-after", "0"], "--free-after"),
            ([*SERVER, "--free-after", "86401"], "--free-after"),
            ([*SERVER, "--hook", "/nonexistent/hook"], "--hook"),
            ([*SERVER, "--scheduler-hook", "/nonexistent/hook"], "--scheduler-hook"),
            ([*SERVER, "--hook", "/bin/true", "--simulate", "h100x1"], "--simulate"),
        ],
    )
    def test_that_cannot_be_used_are_named(self, arguments: list[str], words: str) -> None:
        with pytest.raises(BadSetting) as refusal:
            parse(*arguments)
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:1"])
    def test_allow_plain_http_to_this_machine(self, url: str) -> None:
        assert parse("--server", url).server_url == url

    def test_allow_plain_http_elsewhere_when_told_so(self) -> None:
        assert parse("--server", "http://10.0.0.1", "--allow-http").server_url == "http://10.0.0.1"


class TestFleet:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "h100",
            "h100x0",
            "h100x17",
            "h100x-1",
            "H100x8",
            "k80x2",
            "h100x8:tenant",
            "h100x8:x",
        ],
    )
    def test_that_cannot_be_simulated_is_refused(self, text: str) -> None:
        with pytest.raises(BadFleet):
            parse_fleet(text=text)

    def test_is_mixed_or_of_one_workload(self) -> None:
        assert parse_fleet(text="h100x8").workloads == MIXED
        assert parse_fleet(text="l40sx2:batch").workloads == (Workload.BATCH,)


class TestMain:
    def test_says_in_one_line_that_there_is_no_driver(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        # An empty file cannot be loaded: the machine looks as if it had no driver, whatever it has.
        (tmp_path / "libnvidia-ml.so.1").write_text("")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        assert main(["--once"]) == EXIT_CANNOT_RUN
        lines = capfd.readouterr().err.splitlines()
        assert lines == [
            "agents.node: no NVIDIA driver answers here: NVML Shared Library Not Found"
        ]

    def test_says_in_one_line_what_is_wrong(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["--server", "nonsense"]) == EXIT_CANNOT_RUN
        assert len(capfd.readouterr().err.splitlines()) == 1
