"""The kinds of GPU that the market knows. A product that is not here is never sold."""

from collections.abc import Sequence
from typing import TypedDict

from marketplace.core.errors import DomainError
from marketplace.models import GpuModel


class _Row(TypedDict):
    id: str
    name: str
    memory_gib: int
    nvml_names: list[str]


# Names as nvmlDeviceGetName is expected to spell them, which `nvidia-smi --query-gpu=name` prints too, and
# total memory as the driver is expected to report it, in whole GiB. Written from common knowledge, not
# checked on each of these machines: a name that differs makes a GPU that is never sold, and an operator
# adds the spelling that its node reports to the model.
BUILT_IN_GPU_MODELS: Sequence[_Row] = (
    {
        "id": "b200-sxm-180gb",
        "name": "NVIDIA B200 SXM 180 GB",
        "memory_gib": 179,
        "nvml_names": ["NVIDIA B200"],
    },
    {
        "id": "h200-sxm-141gb",
        "name": "NVIDIA H200 SXM 141 GB",
        "memory_gib": 140,
        "nvml_names": ["NVIDIA H200"],
    },
    {
        "id": "h100-sxm-80gb",
        "name": "NVIDIA H100 SXM 80 GB",
        "memory_gib": 80,
        "nvml_names": ["NVIDIA H100 80GB HBM3"],
    },
    {
        "id": "h100-pcie-80gb",
        "name": "NVIDIA H100 PCIe 80 GB",
        "memory_gib": 80,
        "nvml_names": ["NVIDIA H100 PCIe"],
    },
    {
        "id": "h100-nvl-94gb",
        "name": "NVIDIA H100 NVL 94 GB",
        "memory_gib": 94,
        "nvml_names": ["NVIDIA H100 NVL"],
    },
    {
        "id": "a100-sxm-80gb",
        "name": "NVIDIA A100 SXM 80 GB",
        "memory_gib": 80,
        "nvml_names": ["NVIDIA A100-SXM4-80GB"],
    },
    {
        "id": "a100-sxm-40gb",
        "name": "NVIDIA A100 SXM 40 GB",
        "memory_gib": 40,
        "nvml_names": ["NVIDIA A100-SXM4-40GB"],
    },
    {
        "id": "a100-pcie-80gb",
        "name": "NVIDIA A100 PCIe 80 GB",
        "memory_gib": 80,
        "nvml_names": ["NVIDIA A100 80GB PCIe"],
    },
    {
        "id": "l40s-48gb",
        "name": "NVIDIA L40S 48 GB",
        "memory_gib": 45,
        "nvml_names": ["NVIDIA L40S"],
    },
    {"id": "l4-24gb", "name": "NVIDIA L4 24 GB", "memory_gib": 22, "nvml_names": ["NVIDIA L4"]},
    {
        "id": "rtx-4090",
        "name": "NVIDIA GeForce RTX 4090 24 GB",
        "memory_gib": 24,
        "nvml_names": ["NVIDIA GeForce RTX 4090"],
    },
)


class NoSuchModel(DomainError):
    """The market does not know this kind of GPU."""

    code = "no_such_model"
    title = "No such GPU model"


def seed_gpu_models() -> int:
    """Install the built-in catalogue and return how many models were missing.

    A model that stands is left as it is: an operator may have added product names to it.
    """
    known = set(GpuModel.objects.values_list("id", flat=True))
    missing = [GpuModel(**row) for row in BUILT_IN_GPU_MODELS if row["id"] not in known]
    GpuModel.objects.bulk_create(missing, ignore_conflicts=True)
    return len(missing)


def gpu_model_for_product(*, product_name: str) -> GpuModel | None:
    """Return the model whose NVML names hold exactly `product_name`, or None: it is then never sold."""
    return GpuModel.objects.filter(nvml_names__contains=[product_name]).order_by("id").first()


def get_gpu_model(*, gpu_model_id: str, pointer: str | None = None) -> GpuModel:
    """Return a model by its id, such as `h100-sxm-80gb`.

    :raises NoSuchModel: when the market does not know it.
    """
    gpu_model = (
        GpuModel.objects.filter(id=gpu_model_id).first() if "\x00" not in gpu_model_id else None
    )
    if gpu_model is None:
        raise NoSuchModel(f"the market knows no GPU model {gpu_model_id!r}", pointer=pointer)
    return gpu_model
