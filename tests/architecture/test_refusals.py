"""Every refusal has a code of its own, so that a client can tell them apart for ever."""

import importlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from marketplace.core.errors import DomainError
from tests.architecture.sources import project_files

OUTSIDE = re.compile(r"agents/node/|/migrations/|/management/|(settings|asgi|wsgi|__main__)\.py$")


def refusals() -> set[type[DomainError]]:
    """Return every refusal of the project, its own modules imported first."""
    for path in project_files():
        if not OUTSIDE.search(path):
            importlib.import_module(path[: -len(".py")].replace("/", ".").removesuffix(".__init__"))
    found, new = set(), {DomainError}
    while new:
        found |= new
        new = {kind for parent in new for kind in parent.__subclasses__()} - found
    return {kind for kind in found if not kind.__module__.startswith("tests.")}


def complaints(kinds: Iterable[type[DomainError]]) -> Iterator[str]:
    by_code = defaultdict(list)
    for kind in kinds:
        if "code" in vars(kind):
            by_code[kind.code].append(f"{kind.__module__}.{kind.__qualname__}")
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", kind.code):
            yield f"{kind.__qualname__}: {kind.code!r} is no code"
    for code, names in by_code.items():
        if len(names) > 1:
            yield f"{code} belongs to {', '.join(sorted(names))}"


def test_every_code_belongs_to_one_refusal() -> None:
    assert list(complaints(refusals())) == []


def test_a_planted_twin_is_caught() -> None:
    twins = [type(name, (DomainError,), {"code": "gone"}) for name in ("Gone", "AlsoGone")]
    assert any("gone belongs to" in text for text in complaints(twins))


def test_a_planted_code_with_a_wrong_form_is_caught() -> None:
    assert list(complaints([type("Loud", (DomainError,), {"code": "Not Found!"})]))
