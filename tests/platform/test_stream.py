"""The one stream of lines."""

from datetime import UTC, datetime
from io import StringIO

import pytest

from marketplace.management.stream import LINE_LIMIT_BYTES, LineSplitter, LogStream, clean


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class ClosedPipe(StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def noon() -> datetime:
    return datetime(2026, 11, 23, 12, tzinfo=UTC)


class TestLineSplitter:
    def test_joins_a_line_that_came_in_pieces(self):
        splitter = LineSplitter()
        assert splitter.feed(b"one\ntw") == ["one"]
        assert splitter.feed(b"o\n") == ["two"]
        assert splitter.flush() == []

    def test_gives_back_the_last_line_without_an_end(self):
        splitter = LineSplitter()
        splitter.feed(b"last words")
        assert splitter.flush() == ["last words"]

    def test_cuts_a_line_that_never_ends(self):
        lines = LineSplitter().feed(b"x" * (LINE_LIMIT_BYTES + 5))
        assert lines == ["x" * LINE_LIMIT_BYTES]


class TestClean:
    def test_keeps_a_stranger_from_commanding_the_terminal(self):
        assert clean(b"\x1b[31mred\x1b[0m \x07\x9b") == "red \ufffd"

    def test_survives_bytes_that_are_no_text(self):
        assert clean(b"\xff\xfe ok") == "\ufffd\ufffd ok"

    @pytest.mark.parametrize(
        "line",
        [
            b"[2026-11-23 19:30:57 +0000] [20917] [INFO] ready",
            b"[2026-11-23 19:30:54,963: INFO/MainProcess] ready",
            b"20902:M 23 Nov 2026 19:30:57.953 * ready",
            b"2026-11-23 19:30:57.956 UTC [20888] ready",
            b"2026-11-23 19:30:57,956 ready",
            b"2026-11-23 19:30:57 ready",
        ],
    )
    def test_drops_a_second_time_of_day(self, line):
        assert clean(line) == "ready"


class TestLine:
    def test_stands_after_the_time_and_the_name(self):
        output = StringIO()
        LogStream(output=output, clock=noon).line(name="web", text="ready")
        assert output.getvalue() == "12:00:00 web          | ready\n"

    def test_is_coloured_on_a_terminal(self, monkeypatch):
        monkeypatch.delenv("NO_COLOR", raising=False)
        output = Terminal()
        LogStream(output=output, clock=noon).line(name="web", text="ready")
        assert "\x1b[36mweb          |\x1b[0m ready" in output.getvalue()

    def test_is_plain_on_a_terminal_that_wants_no_colour(self, monkeypatch):
        monkeypatch.setenv("NO_COLOR", "1")
        output = Terminal()
        LogStream(output=output, clock=noon).line(name="web", text="ready")
        assert "\x1b" not in output.getvalue()

    def test_is_dropped_when_empty(self):
        output = StringIO()
        LogStream(output=output).line(name="web", text="")
        assert output.getvalue() == ""

    def test_goes_nowhere_once_the_reader_is_gone(self):
        log = LogStream(output=ClosedPipe())
        log.say("one")
        log.say("two")
