"""The kinds of GPU that the market knows."""

import pytest

from marketplace import catalog
from marketplace.models import GpuModel

pytestmark = pytest.mark.django_db


class TestGpuModelForProduct:
    @pytest.mark.parametrize(
        ("product_name", "gpu_model_id"),
        [
            ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
            ("NVIDIA H200", "h200-sxm-141gb"),
            ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
            ("NVIDIA L40S", "l40s-48gb"),
            ("NVIDIA B200", "b200-sxm-180gb"),
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ],
    )
    def test_knows_a_product_by_the_name_that_nvml_gives_it(
        self, product_name: str, gpu_model_id: str
    ) -> None:
        gpu_model = catalog.gpu_model_for_product(product_name=product_name)
        assert gpu_model is not None
        assert gpu_model.id == gpu_model_id

    @pytest.mark.parametrize("product_name", ["", "NVIDIA H100", "nvidia h200", "NVIDIA H200 NVL"])
    def test_answers_none_for_a_product_that_only_looks_alike(self, product_name: str) -> None:
        assert catalog.gpu_model_for_product(product_name=product_name) is None

    def test_finds_no_product_name_under_two_models(self) -> None:
        names = [name for row in catalog.BUILT_IN_GPU_MODELS for name in row["nvml_names"]]
        assert len(names) == len(set(names))


class TestSeedGpuModels:
    def test_changes_nothing_the_second_time(self) -> None:
        GpuModel.objects.filter(id="l40s-48gb").delete()
        assert catalog.seed_gpu_models() == 1
        assert catalog.seed_gpu_models() == 0

    def test_leaves_what_an_operator_changed(self) -> None:
        GpuModel.objects.filter(id="h200-sxm-141gb").update(nvml_names=["NVIDIA H200", "Lab card"])
        catalog.seed_gpu_models()
        assert catalog.gpu_model_for_product(product_name="Lab card") is not None


class TestGetGpuModel:
    @pytest.mark.parametrize("gpu_model_id", ["", "h100", "H100-SXM-80GB", "h100\x00"])
    def test_refuses_a_model_that_the_market_does_not_know(self, gpu_model_id: str) -> None:
        with pytest.raises(catalog.NoSuchModel):
            catalog.get_gpu_model(gpu_model_id=gpu_model_id)
