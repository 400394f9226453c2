"""The agents of the demo's machines, as programs."""

import json
import sys
from collections.abc import Mapping

from marketplace.management.bootstrap import PROJECT
from marketplace.management.datadir import DataDirectory
from marketplace.management.supervisor import Program

# A person who watches the demo shall see idle GPUs come on offer; an owner's default is ten minutes.
FLEET_FREE_AFTER_SECONDS = 20

# A part that the operator names is not started here, and these are no business of an agent.
SECRETS = ("DATABASE_URL", "CELERY_BROKER_URL", "SECRET_KEY", "STRIPE_SECRET_KEY")
SECRETS_OF_WEBHOOKS = ("STRIPE_WEBHOOK_SECRET",)


def agent_programs(
    *, data: DataDirectory, environment: Mapping[str, str], base_url: str
) -> list[Program]:
    """Return one agent for each machine of the demo's fleet; none where nothing was seeded."""
    path = data.path / "fleet.json"
    if not path.exists():
        return []
    hidden = {*SECRETS, *SECRETS_OF_WEBHOOKS}
    known = {n: value for n, value in environment.items() if n not in hidden}
    return [
        Program(
            name=machine["name"],
            command=[
                *(sys.executable, "-m", "agents.node", "--server", base_url),
                *("--token", machine["token"], "--simulate", machine["simulate"]),
                *("--state-dir", str(data.path / "agents" / machine["name"])),
                *("--name", machine["name"]),
                *("--free-after", str(FLEET_FREE_AFTER_SECONDS)),
            ],
            environment=known,
            working_directory=PROJECT,
            # Before the web server: a report on its way is answered and not waited out.
            stop_rank=2,
        )
        for machine in json.loads(path.read_text(encoding="utf-8"))
    ]
