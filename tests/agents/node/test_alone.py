"""The agent runs where nothing is installed but its one package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = ROOT / "agents" / "node" / "requirements.txt"


def needed() -> dict[str, str]:
    """Return the agent's packages and what they need themselves, with their versions."""
    lines = REQUIREMENTS.read_text().splitlines()
    open_names = [Requirement(line).name for line in lines if line and not line.startswith("#")]
    found: dict[str, str] = {}
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        package = metadata.distribution(name)
        found[name] = package.version
        for text in package.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_names.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds the agent and the packages it names, and nothing else."""
    target = tmp_path_factory.mktemp("bare")
    for name in needed():
        for file in metadata.distribution(name).files or []:
            source = Path(str(file.locate()))
            if ".." in file.parts or source.suffix == ".pyc" or not source.is_file():
                continue
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / file)
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("node", "protocol"):
        shutil.copytree(ROOT / "agents" / name, target / "agents" / name, ignore=skip)
    shutil.copy(ROOT / "agents" / "__init__.py", target / "agents" / "__init__.py")
    return target


def run(bare: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that sees the standard library and `bare`: no site-packages, no variables."""
    start = f"import sys; sys.path.insert(0, {str(bare)!r}); {code}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=bare,
    )


class TestAlone:
    def test_names_the_versions_that_are_tested(self) -> None:
        lines = REQUIREMENTS.read_text().splitlines()
        pins = {r.name: str(r.specifier) for r in map(Requirement, (x for x in lines if "==" in x))}
        assert pins == {name: f"=={metadata.version(name)}" for name in ("nvidia-ml-py",)}

    def test_looks_at_simulated_gpus(self, bare: Path) -> None:
        arguments = ["--once", "--json", "--simulate", "h100x2"]
        done = run(bare, f"from agents.node.__main__ import main; sys.exit(main({arguments!r}))")
        assert (done.returncode, done.stderr) == (0, "")
        seen = json.loads(done.stdout)
        assert seen["simulated"] is True
        assert [gpu["identity"]["product_name"] for gpu in seen["gpus"]] == [
            "NVIDIA H100 80GB HBM3"
        ] * 2

    def test_loads_every_room_without_django_or_cryptography(self, bare: Path) -> None:
        rooms = [
            ".".join(path.relative_to(bare).with_suffix("").parts).removesuffix(".__init__")
            for path in sorted((bare / "agents" / "node").rglob("*.py"))
        ]
        assert len(rooms) > 20
        code = (
            f"import importlib; [importlib.import_module(name) for name in {rooms!r}];"
            " print(sorted({'django', 'cryptography', 'httpx', 'pydantic'} & set(sys.modules)))"
        )
        done = run(bare, code)
        assert (done.stdout.strip(), done.stderr) == ("[]", "")
        for name in ("django", "cryptography"):
            assert run(bare, f"import {name}").returncode != 0, "the place is not bare"
