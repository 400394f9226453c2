"""Both stores and one dummy under the real supervisor, as a process that a test can kill."""

import sys
from pathlib import Path

from marketplace.management.datadir import DataDirectory
from marketplace.management.errors import StopRequested
from marketplace.management.instance import Instance
from marketplace.management.stream import LogStream
from marketplace.management.supervisor import Program, Supervisor


def main() -> None:
    """Run until stopped, in the data directory of the first argument."""
    log = LogStream()
    data = DataDirectory(path=Path(sys.argv[1]))
    data.lock(purpose="test")
    data.recover(say=log.say)
    with Supervisor(log=log) as supervisor:
        instance = Instance(data=data, supervisor=supervisor, log=log, environ={})
        try:
            instance.start_stores()
            supervisor.start(
                program=Program(
                    name="dummy",
                    command=[sys.executable, "-c", "import signal; signal.pause()"],
                    environment={},
                    is_ready=lambda: True,
                )
            )
            supervisor.wait_until_ready(name="dummy", limit_seconds=30)
            instance.mark_ready()
            log.say("all there")
            supervisor.supervise()
        except StopRequested:
            supervisor.stop_all()
            instance.forget()
            log.say("all gone")


if __name__ == "__main__":
    main()
