"""The official validator of FOCUS in an environment of its own: it asks for another Python than the market.

Its requirements are pinned with their hashes in `validator-requirements.txt`, made of its own 2.2.1 and
`pyarrow<22`: with a newer one it does not start. It brings the rules of 1.2 with it and asks nobody else.
It takes a column for sound when one of its values is allowed, so `structure` looks at each.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from marketplace.management.bootstrap import PROJECT

REQUIREMENTS = Path(__file__).with_name("validator-requirements.txt")
ENVIRONMENT = PROJECT / "var/focus-validator"
RULES = "1.2.0.1"
INSTALL_LIMIT_SECONDS = 900  # half a gigabyte, once
RUN_LIMIT_SECONDS = 120

# What this market has, in the words of the validator: rules about anything else do not apply.
FEATURES = (
    "ACCOUNT_NAMING_SUPPORTED",
    "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED",
    "CAPACITY_RESERVATION_SUPPORTED",
    "MULTIPLE_BILLING_ACCOUNT_TYPES_SUPPORTED",
    "MULTIPLE_PRICING_CATEGORIES_SUPPORTED",
    "MULTIPLE_SUB_ACCOUNT_TYPES_SUPPORTED",
    "NEGOTIATED_PRICING_SUPPORTED",
    "PUBLIC_PRICE_LIST_SUPPORTED",
    "REGION_SUPPORTED",
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED",
    "SUB_ACCOUNT_SUPPORTED",
    "TAGGING_SUPPORTED",
    "UNIT_PRICING_SUPPORTED",
    "USAGE_MEASUREMENT_SUPPORTED",
)
# Its own defects, each with what it is; a rule above another fails with it. `test_official_validator` reads
# the rules, and shows that each defect is what is said here.
DEFECTS = {
    "CapacityReservationStatus-C-003-C": "loses its condition: asks every row for null, against C-004",
    "CapacityReservationStatus-C-004-C": "loses its condition: asks every row for a value, against C-003",
    "CapacityReservationStatus-C-002-C": "is both of the two",
    "CapacityReservationStatus-C-000-C": "is above C-002",
    "InvoiceId-C-004-C": "has no condition: asks every row for null",
}
# These fail beside them where some rows of a file stand on a document and some on none, as the rules' own
# words allow. A file of documents alone fails the five above and no more.
DEFECTS_OF_MIXED_FILES = {
    "InvoiceId-C-005-C": "has no condition: asks every row for a number, against C-004",
    "InvoiceId-C-003-C": "is either of the two, each for the whole file and none for its rows",
    "InvoiceId-C-000-O": "is above C-003",
}
_FAILED = re.compile(r"^\S+ (?P<rule>[A-Za-z]+-[A-Z]-\d{3}-[A-Z]): FAIL", flags=re.MULTILINE)
_TOTAL = re.compile(
    r"^Total: (?P<total>\d+) \| Pass: (?P<passed>\d+) \| Fail: (?P<failed>\d+)", re.M
)
_VERSION_OF = "import ensurepip, sys; print(*sys.version_info[:2])"


def find_python() -> str | None:
    """Return a Python 3.12 of this machine, None where there is none: the validator runs on no other."""
    found = shutil.which("python3.12")
    roots = [
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions",
        Path.home() / ".local/share/uv/python",
    ]
    others = [path for root in roots for path in sorted(root.glob("*3.12.*/bin/python3.12"))]
    for candidate in filter(None, [found, *map(str, others)]):
        # A stand-in of a version manager may be in the path and lead nowhere.
        answer = subprocess.run(
            [candidate, "-c", _VERSION_OF], capture_output=True, check=False, text=True
        )
        if answer.returncode == 0 and answer.stdout.split() == ["3", "12"]:
            return candidate
    return None


def install(python: str) -> None:
    """Make the environment, unless it is there with these requirements."""
    marker = ENVIRONMENT / "installed.txt"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return
    subprocess.run([python, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    subprocess.run(
        [
            *(str(ENVIRONMENT / "bin/python"), "-m", "pip", "install", "--quiet"),
            *("--require-hashes", "--requirement", str(REQUIREMENTS)),
        ],
        check=True,
        timeout=INSTALL_LIMIT_SECONDS,
    )
    marker.write_text(wanted, encoding="utf-8")


def rule(rule_id: str) -> dict[str, Any]:
    """Return what the validator's model says of a rule: its words, its condition, what it asks for."""
    (model,) = ENVIRONMENT.glob(f"lib/*/site-packages/focus_validator/rules/model-{RULES}.json")
    rules = json.loads(model.read_text(encoding="utf-8"))["ModelRules"]
    found: dict[str, Any] = rules[rule_id]["ValidationCriteria"]
    return found


def failed_rules(file: Path) -> tuple[set[str], int]:
    """Return the rules that a file breaks, and how many it keeps. The exit status says nothing: it is 0."""
    # It opens one of its own files relative to where it is run.
    (home,) = ENVIRONMENT.glob("lib/python3.12/site-packages")
    answer = subprocess.run(
        [
            *(str(ENVIRONMENT / "bin/focus-validator"), "--data-file", str(file)),
            *("--validate-version", RULES, "--block-download"),
            *("--focus-dataset", "CostAndUsage"),
            *("--applicability-criteria", ",".join(FEATURES)),
        ],
        cwd=home,
        capture_output=True,
        check=True,
        text=True,
        timeout=RUN_LIMIT_SECONDS,
    )
    failed = {match["rule"] for match in _FAILED.finditer(answer.stdout)}
    total = _TOTAL.search(answer.stdout)
    assert total, answer.stdout[-2000:] + answer.stderr[-2000:]
    assert len(failed) == int(total["failed"]), "a failure is in a form that nobody has read here"
    return failed, int(total["passed"])
