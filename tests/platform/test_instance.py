"""What one market is made of, and in which profile it starts."""

import json
import socket
import stat
from io import StringIO

import pytest

from marketplace.management import instance as instance_module
from marketplace.management.datadir import DataDirectory
from marketplace.management.errors import PlainError
from marketplace.management.instance import (
    Instance,
    answers,
    can_share_semaphores,
    choose_profile,
    compose_environment,
    reserve_port,
)
from marketplace.management.stream import LogStream
from marketplace.management.up import closing_block


class Recorder:
    """Takes the programs that would be started."""

    def __init__(self):
        self.started = {}
        self.ran = {}

    def report_changes_to(self, listener):
        del listener

    def start(self, *, program):
        self.started[program.name] = program

    def run(self, *, program, limit_seconds):
        del limit_seconds
        self.ran[program.name] = program

    def wait_until_ready(self, *, name, limit_seconds):
        assert name in self.started
        assert limit_seconds > 0


@pytest.fixture
def supervisor():
    return Recorder()


@pytest.fixture
def make(tmp_path, supervisor):
    def build(**environ):
        data = DataDirectory(path=tmp_path)
        return Instance(
            data=data,
            supervisor=supervisor,
            log=LogStream(output=StringIO()),
            environ=environ,
            base_url="http://127.0.0.1:8123",
        )

    return build


class TestChooseProfile:
    @pytest.mark.parametrize(
        ("environ", "profile"),
        [
            ({}, "demo"),
            ({"DATABASE_URL": "postgres://u@db/x"}, "demo"),
            ({"STRIPE_SECRET_KEY": "sk_test_1"}, "demo"),
            ({"STRIPE_SECRET_KEY": "sk_live_1"}, "production"),
            ({"SECRET_KEY": "s"}, "production"),
            ({"SECRET_KEY": "s", "HEADROOM_PROFILE": "demo"}, "demo"),
            ({"HEADROOM_PROFILE": "production"}, "production"),
        ],
    )
    def test_ends_the_demo_where_something_real_is_given(self, environ, profile):
        assert choose_profile(environ=environ) == profile


class TestEnvironment:
    def compose(self, tmp_path, profile, **environ):
        return compose_environment(
            data=DataDirectory(path=tmp_path),
            environ=environ,
            profile=profile,
            base_url="http://127.0.0.1:8123",
        )

    def test_signs_a_demo_with_a_key_of_its_own(self, tmp_path):
        environment = self.compose(tmp_path, "demo")
        assert environment["SECRET_KEY"] == (tmp_path / "secret_key").read_text().strip()

    def test_makes_up_neither_key_nor_hosts_in_production(self, tmp_path):
        environment = self.compose(tmp_path, "production")
        assert "SECRET_KEY" not in environment
        assert "ALLOWED_HOSTS" not in environment

    def test_leaves_what_the_operator_says(self, tmp_path):
        environment = self.compose(
            tmp_path, "production", SECRET_KEY="s", ALLOWED_HOSTS="m.example"
        )
        assert environment["SECRET_KEY"] == "s"
        assert environment["ALLOWED_HOSTS"] == "m.example"


class TestStores:
    def test_are_not_started_when_the_operator_named_real_ones(self, make, supervisor):
        make(DATABASE_URL="postgres://u@db/x", CELERY_BROKER_URL="redis://b").start_stores()
        assert supervisor.started == {}


class TestReservePort:
    def test_takes_the_next_free_one_when_none_was_asked_for(self, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as server:
            taken = server.getsockname()[1]
            monkeypatch.setattr(instance_module, "DEFAULT_PORT", taken)
            with reserve_port(port=None) as listener:
                assert listener.getsockname()[1] > taken

    def test_refuses_a_taken_one_that_was_asked_for(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            taken = server.getsockname()[1]
            with pytest.raises(PlainError, match=f"port {taken} cannot be used"):
                reserve_port(port=taken)

    def test_gives_up_when_every_port_is_taken(self, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setattr(instance_module, "DEFAULT_PORT", server.getsockname()[1])
            monkeypatch.setattr(instance_module, "PORTS_TRIED", 1)
            with pytest.raises(PlainError, match="no free port"):
                reserve_port(port=None)

    def test_refuses_connections_until_the_web_server_starts(self):
        with reserve_port(port=None) as listener:
            assert not answers(port=listener.getsockname()[1])


class TestSeed:
    def test_runs_once(self, make, supervisor, tmp_path):
        make().seed()
        assert "--base-url" in supervisor.ran["seed_demo"].command
        (tmp_path / "demo.json").write_text('{"base_url": "http://127.0.0.1:8123"}')
        supervisor.ran.clear()
        make().seed()
        assert supervisor.ran == {}

    def test_runs_again_beside_an_empty_database(self, make, supervisor, tmp_path):
        (tmp_path / "demo.json").write_text("{}")
        instance = make()
        instance.is_fresh = True
        instance.seed()
        assert "seed_demo" in supervisor.ran

    def test_corrects_the_address_when_the_port_is_another_one(self, make, supervisor, tmp_path):
        path = tmp_path / "demo.json"
        path.write_text('{"base_url": "http://127.0.0.1:8000", "owner": {"api_key": "k"}}')
        make().seed()
        assert supervisor.ran == {}
        assert json.loads(path.read_text()) == {
            "base_url": "http://127.0.0.1:8123",
            "owner": {"api_key": "k"},
        }
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


class TestMarket:
    def test_is_web_worker_and_beat(self, make, supervisor):
        with reserve_port(port=None) as listener:
            make().start_market(listener=listener)
            assert list(supervisor.started) == ["web", "worker", "beat"]
            assert supervisor.started["web"].pass_fds == [listener.fileno()]

    def test_ends_from_beat_to_web(self, make, supervisor):
        with reserve_port(port=None) as listener:
            make().start_market(listener=listener)
        ranks = {name: program.stop_rank for name, program in supervisor.started.items()}
        assert ranks["beat"] < ranks["worker"] < ranks["web"]

    def test_runs_threads_where_processes_cannot_share_a_lock(self, make, supervisor, monkeypatch):
        monkeypatch.setattr(instance_module, "can_share_semaphores", lambda: False)
        with reserve_port(port=None) as listener:
            make().start_market(listener=listener)
        command = supervisor.started["worker"].command
        assert command[command.index("--pool") + 1] == "threads"

    def test_can_share_a_lock_unless_the_machine_refuses(self, monkeypatch):
        assert can_share_semaphores()

        def refuse(_):
            raise PermissionError

        monkeypatch.setattr(instance_module.multiprocessing, "get_context", refuse)
        assert not can_share_semaphores()


class TestFleet:
    FLEET = (
        {"name": "amsterdam-1", "token": "t1", "simulate": "h100x8", "region": "eu"},
        {"name": "oregon-1", "token": "t2", "simulate": "a100x4", "region": "us"},
    )

    def test_is_one_agent_for_each_machine(self, make, supervisor, tmp_path):
        (tmp_path / "fleet.json").write_text(json.dumps(self.FLEET))
        assert make().start_fleet() == 2
        command = list(supervisor.started["oregon-1"].command)
        assert command[command.index("--token") + 1] == "t2"
        assert command[command.index("--state-dir") + 1] == str(tmp_path / "agents/oregon-1")

    def test_never_sees_the_secrets_of_the_market(self, make, supervisor, tmp_path):
        (tmp_path / "fleet.json").write_text(json.dumps(self.FLEET))
        make(STRIPE_SECRET_KEY="sk_test_1", DATABASE_URL="postgres://u@db/x").start_fleet()
        environment = supervisor.started["amsterdam-1"].environment
        assert not {"SECRET_KEY", "DATABASE_URL", "STRIPE_SECRET_KEY"} & environment.keys()

    def test_is_empty_without_a_list(self, make):
        assert make().start_fleet() == 0

    def test_ends_while_the_web_server_still_answers(self, make, supervisor, tmp_path):
        (tmp_path / "fleet.json").write_text(json.dumps(self.FLEET))
        instance = make()
        instance.start_fleet()
        with reserve_port(port=None) as listener:
            instance.start_market(listener=listener)
        ranks = {name: program.stop_rank for name, program in supervisor.started.items()}
        assert ranks["beat"] < ranks["amsterdam-1"] < ranks["web"]


class TestClosingBlock:
    def test_shows_addresses_keys_and_what_to_try(self, make, tmp_path):
        (tmp_path / "demo.json").write_text(
            json.dumps(
                {
                    "base_url": "http://127.0.0.1:8123",
                    "admin": {"username": "admin", "password": "correct horse"},
                    "owner": {"api_key": "hr_live_owner"},
                    "tenant": {"api_key": "hr_live_tenant"},
                }
            )
        )
        text = "\n".join(closing_block(instance=make()))
        for part in (
            "http://127.0.0.1:8123/admin/",
            "admin / correct horse",
            "hr_live_owner",
            "hr_live_tenant",
            "manage.py demo",
        ):
            assert part in text

    def test_shows_no_key_in_production(self, make, tmp_path):
        (tmp_path / "demo.json").write_text('{"owner": {"api_key": "hr_live_owner"}}')
        text = "\n".join(closing_block(instance=make(SECRET_KEY="s" * 50)))
        assert "hr_live_owner" not in text
