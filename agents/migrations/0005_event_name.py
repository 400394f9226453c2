"""Call GPU events by their name."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("agents", "0004_wire"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="gpuevent",
            options={"verbose_name": "GPU event"},
        ),
    ]
