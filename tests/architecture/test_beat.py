"""The beat table: every entry names a task that exists, takes nothing, and does not pile up."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from marketplace.celery import EXPIRES_SECONDS_MIN, app


def complaints(schedule: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    app.loader.import_default_modules()
    for name, entry in schedule.items():
        if entry.get("args") or entry.get("kwargs"):
            yield f"{name} is called with arguments"
        expires = entry.get("options", {}).get("expires", 0)
        if not 0 < expires <= max(entry["schedule"], EXPIRES_SECONDS_MIN):
            yield f"{name} piles up while no worker runs"
        if 0 < expires < EXPIRES_SECONDS_MIN:
            yield f"{name} is dead on arrival where two clocks differ"
        task = app.tasks.get(entry["task"])
        if task is None:
            yield f"{name} names no task: {entry['task']}"
        elif _input_of(task.run):
            yield f"{name} takes parameters"


def _input_of(task: Callable[..., object]) -> list[str]:
    """Return the names of what a task takes; what it swallows of later versions' messages is no input."""
    parameters = inspect.signature(task).parameters.values()
    return [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]


def test_every_entry_names_a_task_without_input() -> None:
    assert list(complaints(app.conf.beat_schedule)) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"args": (1,)}, "is called with arguments"),
        ({"kwargs": {"lease_id": "lse_1"}}, "is called with arguments"),
        ({"options": {}}, "piles up"),
        ({"options": {"expires": 11}}, "piles up"),
        ({"options": {"expires": 5}}, "dead on arrival"),
        ({"task": "billing.settle_everything"}, "names no task"),
        ({"task": "celery.chunks"}, "takes parameters"),
    ],
)
def test_a_planted_entry_is_caught(change: dict[str, Any], complaint: str) -> None:
    entry = {"task": "celery.backend_cleanup", "schedule": 5, "options": {"expires": 10}}
    assert list(complaints({"planted": entry})) == []
    assert any(complaint in text for text in complaints({"planted": entry | change}))
