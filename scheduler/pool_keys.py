"""What makes GPUs interchangeable for a tenant: they have one price, and one supply."""

from dataclasses import dataclass

from marketplace.states import Tier


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PoolKey:
    """GPUs of one model, region and tier."""

    gpu_model_id: str
    region: str
    tier: Tier
