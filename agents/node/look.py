"""`--once`: say in one document what the agent sees of this machine now, and what it makes of it."""

from __future__ import annotations

import json
from typing import Any

from agents.node import AGENT_VERSION, assembly, host, idle
from agents.node.child import ChildReader
from agents.node.clock import MarketClock, SystemClock
from agents.node.config import Settings
from agents.node.health import judge
from agents.protocol import PROTOCOL_VERSION, IdlePolicy, to_json


def look(*, settings: Settings) -> dict[str, Any]:
    """Read everything once and return it as plain JSON values.

    What could not be read is null, and `unread` beside it says why. Idleness needs many looks: what one
    look can say is whether the GPU is at work.

    :raises StateUnusable: when a state directory was given and cannot be used.
    :raises ReaderUnavailable: when there is no driver, or it does not answer.
    """
    clock = MarketClock(clock=SystemClock())
    machine_id = host.machine_id() or "unknown"
    if settings.fleet is not None and settings.state_dir is not None:
        host.open_state(directory=settings.state_dir).close()
        machine_id = host.simulated_machine_id(directory=settings.state_dir)
    reader = assembly.reader_for(settings=settings, clock=clock, machine_id=machine_id)
    try:
        identities = {identity.uuid: identity for identity in reader.identify()}
        samples = reader.read(at=clock.now(), with_processes=list(identities))
        counters = {c.gpu_uuid: c for c in reader.counters(gpu_uuids=list(identities))}
        set_up = {s.gpu_uuid: s for s in reader.settings(gpu_uuids=list(identities))}
        processes = reader.processes(gpu_uuids=list(identities))
        facts = reader.host()
        warnings = reader.warnings()
        milliseconds = reader.call_milliseconds() if isinstance(reader, ChildReader) else {}
    finally:
        reader.close()
    gpus = []
    for sample in samples:
        identity = identities[sample.gpu_uuid]
        state, reason = judge(sample=sample)
        track = idle.step(
            track=idle.begin(product_name=identity.product_name),
            sample=sample,
            policy=IdlePolicy(free_after_seconds=round(settings.free_after_seconds)),
        )
        held = processes.get(sample.gpu_uuid)
        gpus.append(
            {
                "identity": to_json(identity),
                "sample": to_json(sample),
                "processes": None if held is None else to_json(held),
                "counters": to_json(counters.get(sample.gpu_uuid)),
                "settings": to_json(set_up.get(sample.gpu_uuid)),
                "health": state.value,
                "health_reason": reason,
                "idle_state": track.state.value,
                "idle_reason": track.reason,
            }
        )
    return {
        "agent_version": AGENT_VERSION,
        "protocol": PROTOCOL_VERSION,
        "name": settings.name,
        "simulated": reader.simulated,
        "host": to_json(facts),
        "gpus": gpus,
        "warnings": [*settings.warnings, *warnings],
        "call_milliseconds": milliseconds,
    }


def as_json(seen: dict[str, Any]) -> str:
    """Return the document for programs."""
    return json.dumps(seen, indent=2, sort_keys=True) + "\n"


def as_text(seen: dict[str, Any]) -> str:
    """Return the most important of it for people, a line for each GPU."""
    marked = " (simulated)" if seen["simulated"] else ""
    lines = [f"{seen['name']}: {len(seen['gpus'])} GPUs{marked}"]
    for gpu in seen["gpus"]:
        identity, sample, reason = gpu["identity"], gpu["sample"], gpu["health_reason"]
        lines.append(
            f"  {identity['index']} {identity['product_name']} {identity['uuid']}"
            f" {gpu['health']}{reason and ': '}{reason};"
            f" load {_or_unread(sample['utilization_percent'])} %,"
            f" processes {_or_unread(sample['process_count'])},"
            f" power {_or_unread(sample['power_draw_milliwatts'])} mW"
        )
    lines += [f"  note: {warning}" for warning in seen["warnings"]]
    return "\n".join(lines) + "\n"


def _or_unread(value: int | None) -> str:
    return "unread" if value is None else str(value)
