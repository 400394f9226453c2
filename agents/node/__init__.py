"""The program on a GPU host: standard library, nvidia-ml-py and httpx; it knows nothing of Django."""

AGENT_VERSION = "0.1.0"
