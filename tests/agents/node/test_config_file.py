"""Settings from a file: what counts first, what is refused and where, and that the token stays hidden."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agents.node.__main__ import main
from agents.node.config import OPTIONS, BadSetting, Settings, parse_settings

URL = "https://market.example.com"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.touch(mode=0o600)
    return path


def parse(file: Path, *arguments: str, **environment: str) -> Settings:
    return parse_settings(arguments=arguments, environment=environment, default_file=file)


class TestOrder:
    def test_is_flag_then_environment_then_file_then_default(self, file: Path) -> None:
        file.write_text(f'server = "{URL}"\nname = "file"\nfree_after = 30\n')
        assert parse(file).name == "file"
        assert parse(file, HEADROOM_NAME="variable").name == "variable"
        assert parse(file, "--name", "flag", HEADROOM_NAME="variable").name == "flag"
        assert parse(file).free_after_seconds == 30
        file.write_text(f'server = "{URL}"\n')
        assert parse(file).free_after_seconds is None  # the owner's policy decides

    def test_knows_three_ways_to_name_the_file(self, file: Path, tmp_path: Path) -> None:
        file.write_text(f'server = "{URL}"\nname = "one"\n')
        nowhere = tmp_path / "nowhere.toml"
        assert parse(nowhere, "--config", str(file)).name == "one"
        assert parse(nowhere, HEADROOM_CONFIG=str(file)).name == "one"
        assert parse(file).name == "one"
        with pytest.raises(BadSetting, match="HEADROOM_SERVER is missing"):
            parse(nowhere)
        with pytest.raises(BadSetting, match=r"nowhere\.toml: cannot be read"):
            parse(file, "--config", str(nowhere))

    def test_covers_every_setting_in_all_three_places(self, file: Path, tmp_path: Path) -> None:
        samples = {
            "server": URL, "token": "t", "token_file": str(file), "state_dir": str(tmp_path),
            "name": "n", "simulate": "h100x2", "hook": "/bin/true", "provisioner": "container",
            "free_after": 30, "spool_quota": 64, "allow_http": True, "port_range": "2000-3000",
        }  # fmt: skip
        for one in OPTIONS.values():
            if one.is_action:
                continue
            value = samples.get(one.name, "text")
            text = f'"{value}"' if isinstance(value, str) else str(value).lower()
            file.write_text(f"{one.name} = {text}\n")
            flags = [one.flag] if value is True else [one.flag, str(value)]
            variable = {one.variable: "1" if value is True else str(value)}
            attribute = next(name for name, other in OPTIONS.items() if other is one)

            def read(path: Path, *arguments: str, _name: str = attribute, **more: str) -> object:
                try:
                    return getattr(parse(path, "--check", *arguments, **more), _name)
                except BadSetting as error:
                    return str(error)  # one that needs another one says so, wherever it stands

            found = [read(file), read(tmp_path / "no", *flags), read(tmp_path / "no", **variable)]
            assert found[0] == found[1] == found[2], one.name
            assert found[0] != getattr(parse(tmp_path / "no", "--check"), attribute), one.name


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('\n\nsever = "x"', "node.toml:3: sever: no such setting; there are server"),
            ("[leases]\nx = 1", "node.toml:1: leases: no such setting"),
            ("once = true", "node.toml:1: once: no such setting"),
            ("name = 7", "node.toml:1: name 7: must be text in quotes"),
            ('name = "a b"', "node.toml:1: name 'a b': must be a host name"),
            ('image = "1"\nname = \n', "node.toml: Invalid value (at line 2"),
            ("free_after = true", "free_after True: must be a number of seconds from 1 to 86400"),
            ("free_after = 0", "must be a number of seconds from 1"),
            ("free_after = nan", "must be a number of seconds"),
            ('allow_http = "perhaps"', "must be true or false"),
            ("spool_quota = 1", "must be a number of MiB from 16 to 65536"),
            ('provisioner = "vm"', "must be container or hook"),
            ('hook = ""', "must be a path"),
            ('simulate = "h100"', "PRODUCTxCOUNT"),
            ("x" * 70_000, "longer than 65536 bytes"),
        ],
    )
    def test_name_file_line_and_key(self, file: Path, text: str, words: str) -> None:
        file.write_text(text)
        with pytest.raises(BadSetting) as refusal:
            parse(file, "--server", URL)
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_of_bytes_that_are_no_text_are_one_line(self, file: Path) -> None:
        file.write_bytes(b"name = '\xff'")
        with pytest.raises(BadSetting, match="utf-8"):
            parse(file)

    def test_never_show_a_token(self, file: Path) -> None:
        file.write_text("token = 12345\n")
        with pytest.raises(BadSetting) as refusal:
            parse(file)
        assert "12345" not in str(refusal.value)


class TestToken:
    def test_comes_from_a_file_of_its_own(self, file: Path, tmp_path: Path) -> None:
        secret = tmp_path / "token"
        secret.touch(mode=0o600)
        secret.write_text("hush\n")
        file.write_text(f'server = "{URL}"\ntoken_file = "{secret}"\n')
        settings = parse(file)
        assert settings.token == "hush"
        assert settings.warnings == ()
        assert "hush" not in repr(settings)
        assert parse(file, HEADROOM_TOKEN="nearer").token == "nearer"

    def test_is_warned_of_where_others_can_read_it(self, file: Path, tmp_path: Path) -> None:
        secret = tmp_path / "token"
        secret.write_text("hush\n")
        secret.chmod(0o644)
        (warning,) = parse(file, "--server", URL, "--token-file", str(secret)).warnings
        assert warning == f"{secret} can be read by others: chmod 600 {secret}"
        file.write_text('token = "hush"\n')
        file.chmod(0o640)
        (warning,) = parse(file, "--server", URL).warnings
        assert "holds the token" in warning
        assert "hush" not in warning

    @pytest.mark.parametrize("text", ["", "two words", "two\nlines"])
    def test_file_that_holds_none_is_refused(self, file: Path, tmp_path: Path, text: str) -> None:
        secret = tmp_path / "token"
        secret.write_text(text)
        with pytest.raises(BadSetting, match="one token and nothing else"):
            parse(file, "--server", URL, "--token-file", str(secret))
        with pytest.raises(BadSetting, match="cannot be read"):
            parse(file, "--server", URL, "--token-file", str(tmp_path / "nowhere"))

    def test_is_never_logged(
        self,
        file: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        file.write_text(
            'token = "hush-hush"\nserver = "http://127.0.0.1:9"\nstate_dir = "/proc/x"\n'
        )
        with caplog.at_level(logging.DEBUG):
            assert main(["--config", str(file), "--simulate", "h100x1"]) == 2
        said = capfd.readouterr()
        assert "hush-hush" not in caplog.text + said.out + said.err


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(arguments=["--help"], environment={})
    shown = capsys.readouterr().out
    for one in OPTIONS.values():
        assert one.flag in shown
        assert one.help.split()[0] in shown
