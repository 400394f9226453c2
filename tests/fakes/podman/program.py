"""The program itself: `program.py DIRECTORY VERB …`."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SSHD = """
import socket, sys
server = socket.create_server(("", int(sys.argv[1])))
while True:
    connection, _ = server.accept()
    connection.sendall(b"SSH-2.0-fake\\r\\n")
    connection.close()
"""
DIRECTORY = Path(sys.argv[1])
STATE = DIRECTORY / "state.json"
ARGUMENTS = sys.argv[2:]
VERB = ARGUMENTS[0]


def end(status=0, output="", errors=""):
    sys.stdout.write(output)
    sys.stderr.write(errors)
    sys.exit(status)


def absent(name):
    end(125, errors=f'Error: no such container "{name}"\n')


def options(name):
    return [ARGUMENTS[i + 1] for i, word in enumerate(ARGUMENTS) if word == name]


def kill(container):
    if container["status"] == "running":
        os.kill(container["pid"], signal.SIGKILL)
        container["status"] = "exited"


def run(state):
    (name,) = options("--name")
    if name in state["containers"]:
        end(125, errors=f'Error: the container name "{name}" is already in use by 1234\n')
    for device in options("--device"):
        if device.startswith("nvidia.com/gpu=GPU-absent"):
            end(125, errors=f"Error: setting up CDI devices: unresolvable CDI devices {device}\n")
    port = options("--publish")[0].split(":")[0]
    code = "import time; time.sleep(600)" if (DIRECTORY / "mute").exists() else SSHD
    child = subprocess.Popen(
        [sys.executable, "-c", code, port],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    labels = dict(label.split("=", 1) for label in options("--label"))
    state["containers"][name] = {"status": "running", "pid": child.pid, "labels": labels}


def main():
    with (DIRECTORY / "calls").open("a") as file:
        file.write(json.dumps(ARGUMENTS) + "\n")
    if (DIRECTORY / f"hang.{VERB}").exists():
        time.sleep(600)
    fault = DIRECTORY / f"fail.{VERB}"
    if fault.exists():
        status, errors, times = json.loads(fault.read_text())
        fault.write_text(json.dumps([status, errors, times - 1])) if times > 1 else fault.unlink()
        end(status, errors=errors)
    state = json.loads(STATE.read_text())
    containers, name = state["containers"], ARGUMENTS[-1]
    if VERB == "version":
        end(
            output=(DIRECTORY / "version").read_text()
            if (DIRECTORY / "version").exists()
            else "4.3.1\n"
        )
    elif VERB == "image":
        end(0 if name in state["images"] else 1, errors="Error: no such image\n")
    elif VERB == "pull":
        state["images"].append(name)
    elif VERB == "network":
        if ARGUMENTS[1] == "create":
            if name in state["networks"]:
                end(125, errors="Error: network name already used\n")
            state["networks"].append(name)
        elif name not in state["networks"]:
            end(125, errors=f"Error: unable to find network with name or ID {name}\n")
        elif ARGUMENTS[1] == "rm":
            state["networks"].remove(name)
    elif VERB == "run":
        run(state)
    elif VERB == "ps":
        wanted = options("--filter")[0].removeprefix("label=").split("=", 1)
        found = [n for n, c in containers.items() if c["labels"].get(wanted[0]) == wanted[1]]
        end(output="".join(f"{n}\n" for n in found))
    elif VERB == "container":
        if name not in containers:
            absent(name)
        status = containers[name]["status"]
        shown = {
            "Id": hashlib.sha256(name.encode()).hexdigest(),
            "State": {"Status": status, "Running": status == "running"},
            "Config": {"Labels": containers[name]["labels"]},
        }
        end(output=json.dumps([shown]))
    elif VERB == "logs":
        end(errors="sshd: no hostkeys available\n")
    elif name not in containers:
        end(
            0 if VERB == "rm" else 125,
            errors="" if VERB == "rm" else f"Error: no container with name {name}\n",
        )
    elif VERB in ("stop", "kill"):
        kill(containers[name])
    elif VERB == "rm":
        kill(containers.pop(name))
    STATE.write_text(json.dumps(state))


main()
