"""A version of the first layout says nothing of forecasts and cannot be read any more."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0007_reasons_without_choices")]
    operations = [
        migrations.RunSQL("DELETE FROM scheduler_priceversion", migrations.RunSQL.noop),
        migrations.AddField(
            model_name="priceversion",
            name="facts",
            field=models.JSONField(
                default=dict,
                db_comment="whole numbers by name: size_ratio_millionths, reclaim_likelihood_…",
            ),
        ),
        migrations.AlterField(
            model_name="priceversion",
            name="forecast",
            field=models.BinaryField(
                null=True,
                db_comment="packed demand still to come, thousandths of a GPU; null where nothing is forecast",
            ),
        ),
        migrations.AlterField(
            model_name="priceversion",
            name="rates",
            field=models.BinaryField(
                db_comment="packed: rate, rate before limits, rate of the other tier, micros per GPU-hour; then the share of the forecast demand that there is room for, basis points, -1 without one"
            ),
        ),
        migrations.AlterField(
            model_name="priceversion",
            name="reference",
            field=models.BinaryField(
                db_comment="packed rates in force when the clock hour began, and the latest before this version"
            ),
        ),
    ]
