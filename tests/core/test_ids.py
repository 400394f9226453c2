"""Public identifiers."""

import re

import pytest

from marketplace.core import ids


class TestNewId:
    def test_has_its_prefix_and_26_digits(self):
        assert re.fullmatch(r"rsv_[0-9a-hjkmnp-tv-z]{26}", ids.new_id("rsv"))

    def test_fits_the_columns(self):
        assert len(ids.new_id("rsv")) <= ids.ID_LENGTH_MAX

    def test_never_repeats(self):
        assert len({ids.new_id("lse") for _ in range(1000)}) == 1000

    def test_sorts_by_the_time_of_its_making(self, monkeypatch):
        made = []
        for milliseconds in (1, 999, 1_000_000, 1_790_000_000_000):
            monkeypatch.setattr(ids.time, "time_ns", lambda now=milliseconds: now * 1_000_000)
            made.append(ids.new_id("gpu"))

        assert made == sorted(made)

    def test_refuses_a_prefix_that_the_contract_does_not_know(self):
        with pytest.raises(AssertionError):
            ids.new_id("foo")
