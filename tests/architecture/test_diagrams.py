"""Every table of arrows stands in its package's README as the diagram that the table makes."""

import importlib
import re

import pytest

from marketplace.core.states import Arrows
from tests.architecture.sources import PACKAGES, ROOT

_BLOCK = re.compile(r"<!-- arrows: (\w+) -->\s*```mermaid\n(.*?)\n```", flags=re.DOTALL)
README_LINES_MAX = 60


def tables() -> list[tuple[str, str]]:
    """Return the package and the name of every table of arrows."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("states.py")):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            found += [(package, name) for name, v in vars(module).items() if isinstance(v, Arrows)]
    return found


def diagrams(text: str) -> dict[str, str]:
    return dict(_BLOCK.findall(text))


@pytest.mark.parametrize(("package", "name"), tables())
def test_the_readme_draws_the_table(package: str, name: str) -> None:
    arrows = getattr(importlib.import_module(f"{package}.states"), name)
    drawn = diagrams((ROOT / package / "README.md").read_text(encoding="utf-8"))
    assert drawn.get(name) == arrows.as_diagram()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_readme_draws_no_table_that_is_gone(package: str) -> None:
    drawn = diagrams((ROOT / package / "README.md").read_text(encoding="utf-8"))
    assert set(drawn) == {name for owner, name in tables() if owner == package}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_readme_can_be_read_at_one_sitting(package: str) -> None:
    lines = (ROOT / package / "README.md").read_text(encoding="utf-8").splitlines()
    prose = len(lines) - sum(d.count("\n") for d in diagrams("\n".join(lines)).values())
    assert prose <= README_LINES_MAX


def test_a_diagram_with_one_arrow_too_many_is_caught() -> None:
    package, name = tables()[0]
    arrows = getattr(importlib.import_module(f"{package}.states"), name)
    planted = f"<!-- arrows: {name} -->\n```mermaid\n{arrows.as_diagram()}\n    a --> b\n```"
    assert diagrams(planted)[name] != arrows.as_diagram()
    assert diagrams(planted.replace("\n    a --> b", ""))[name] == arrows.as_diagram()
