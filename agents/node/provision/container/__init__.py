"""Hand GPUs over as a container with sshd inside, by the command line of podman or docker.

The name `headroom-LEASE-EPOCH` is the lock: a second `run` of one lease fails, whoever tries. The agent may
die; containers live, and are found again by their labels.
"""

from agents.node.provision.container.machine import Machine, measure
from agents.node.provision.container.options import Options
from agents.node.provision.container.provisioner import ContainerProvisioner

__all__ = ["ContainerProvisioner", "Machine", "Options", "measure"]
