"""Install the GPU models that the market knows from the beginning."""

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from marketplace.catalog import BUILT_IN_GPU_MODELS


def _install(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    gpu_model = apps.get_model("marketplace", "GpuModel")
    gpu_model.objects.bulk_create(
        [gpu_model(**row) for row in BUILT_IN_GPU_MODELS], ignore_conflicts=True
    )


class Migration(migrations.Migration):
    dependencies = [("marketplace", "0002_seal_the_trail")]
    operations = [migrations.RunPython(_install, migrations.RunPython.noop, elidable=True)]
