"""What the second protocol says of machines: events, outages, alarms, owners' policies."""

import agents.protocol.messages
import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models


GUARD = """
CREATE TRIGGER agents_gpuevent_is_append_only BEFORE UPDATE OR DELETE ON agents_gpuevent
    FOR EACH ROW EXECUTE FUNCTION agents_refuse_change();
CREATE TRIGGER agents_policy_is_append_only BEFORE UPDATE OR DELETE ON agents_policy
    FOR EACH ROW EXECUTE FUNCTION agents_refuse_change();
"""

DROP_GUARD = """
DROP TRIGGER agents_policy_is_append_only ON agents_policy;
DROP TRIGGER agents_gpuevent_is_append_only ON agents_gpuevent;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("agents", "0002_slots_and_evidence"),
        ("marketplace", "0003_built_in_gpu_models"),
    ]

    operations = [
        migrations.CreateModel(
            name="Alarm",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("gpu_claimed_twice", "Gpu Claimed Twice"),
                            ("node_cloned", "Node Cloned"),
                        ],
                        max_length=30,
                    ),
                ),
                (
                    "gpu_uuid",
                    models.CharField(
                        blank=True, db_comment="empty: the whole node", max_length=100
                    ),
                ),
                ("detail", models.CharField(max_length=500)),
                ("raised_at", models.DateTimeField()),
                ("settled_at", models.DateTimeField(blank=True, null=True)),
                ("settled_by", models.CharField(blank=True, max_length=100)),
            ],
        ),
        migrations.CreateModel(
            name="GpuEvent",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("enrolment", models.PositiveIntegerField()),
                ("epoch", models.BigIntegerField()),
                ("sequence", models.BigIntegerField()),
                ("at", models.DateTimeField(db_comment="node's clock")),
                (
                    "kind",
                    models.CharField(choices=[("xid", "xid"), ("health", "health")], max_length=10),
                ),
                (
                    "source",
                    models.CharField(
                        choices=[
                            ("nvml", "nvml"),
                            ("kernel_log", "kernel_log"),
                            ("agent", "agent"),
                        ],
                        max_length=20,
                    ),
                ),
                (
                    "cause",
                    models.CharField(
                        choices=[
                            ("tenant", "tenant"),
                            ("hardware", "hardware"),
                            ("unknown", "unknown"),
                        ],
                        max_length=10,
                    ),
                ),
                ("xid", models.PositiveIntegerField(null=True)),
                ("pid", models.BigIntegerField(null=True)),
                ("process_name", models.CharField(blank=True, max_length=100)),
                (
                    "health",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("healthy", "healthy"),
                            ("suspect", "suspect"),
                            ("quarantined", "quarantined"),
                            ("lost", "lost"),
                        ],
                        max_length=20,
                    ),
                ),
                ("reason", models.CharField(blank=True, max_length=500)),
                ("lease_id", models.CharField(blank=True, max_length=32)),
                ("lease_epoch", models.PositiveIntegerField(null=True)),
                ("received_at", models.DateTimeField(db_comment="server's clock")),
            ],
        ),
        migrations.CreateModel(
            name="Outage",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "health",
                    models.CharField(
                        choices=[
                            ("healthy", "healthy"),
                            ("suspect", "suspect"),
                            ("quarantined", "quarantined"),
                            ("lost", "lost"),
                        ],
                        max_length=20,
                    ),
                ),
                (
                    "cause",
                    models.CharField(
                        choices=[
                            ("tenant", "tenant"),
                            ("hardware", "hardware"),
                            ("unknown", "unknown"),
                        ],
                        max_length=10,
                    ),
                ),
                ("reason", models.CharField(max_length=500)),
                ("lease_id", models.CharField(blank=True, db_comment="who had it", max_length=32)),
                ("starts_at", models.DateTimeField(db_comment="node's clock")),
                ("ends_at", models.DateTimeField(blank=True, null=True)),
            ],
        ),
        migrations.CreateModel(
            name="Policy",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("version", models.PositiveIntegerField()),
                ("document", models.JSONField(db_comment="protocol.NodePolicy, less its version")),
                ("created_at", models.DateTimeField()),
                ("created_by", models.CharField(max_length=100)),
            ],
            options={
                "verbose_name_plural": "policies",
            },
        ),
        migrations.AddField(
            model_name="enrolmenttoken",
            name="allowed_networks",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=50),
                blank=True,
                db_comment="CIDR blocks from which it may be used; empty: from anywhere",
                default=list,
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="gpu",
            name="board_part_number",
            field=models.CharField(blank=True, max_length=100),
        ),
        migrations.AddField(
            model_name="gpu",
            name="counters",
            field=models.JSONField(blank=True, db_comment="the last GpuCounters", default=dict),
        ),
        migrations.AddField(
            model_name="gpu",
            name="counters_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="gpu",
            name="fabric_clique",
            field=models.CharField(blank=True, max_length=100),
        ),
        migrations.AddField(
            model_name="gpu",
            name="idle_reason",
            field=models.CharField(blank=True, db_comment="the agent's words", max_length=500),
        ),
        migrations.AddField(
            model_name="gpu",
            name="mig_devices",
            field=models.JSONField(blank=True, default=list),
        ),
        migrations.AddField(
            model_name="gpu",
            name="offered_again_at",
            field=models.DateTimeField(
                blank=True, db_comment="not offered as idle before that", null=True
            ),
        ),
        migrations.AddField(
            model_name="gpu",
            name="vbios_version",
            field=models.CharField(blank=True, max_length=40),
        ),
        migrations.AddField(
            model_name="gpu",
            name="virtualization_mode",
            field=models.CharField(blank=True, max_length=20),
        ),
        migrations.AddField(
            model_name="gpu",
            name="withdrawals",
            field=models.PositiveSmallIntegerField(
                db_comment="how often it stopped being idle on `withdrawn_on`", default=0
            ),
        ),
        migrations.AddField(
            model_name="gpu",
            name="withdrawn_on",
            field=models.DateField(blank=True, db_comment="UTC", null=True),
        ),
        migrations.AddField(
            model_name="meterreading",
            name="attached_seconds",
            field=models.PositiveIntegerField(
                db_comment="a process held its memory; null: not measured", null=True
            ),
        ),
        migrations.AddField(
            model_name="node",
            name="host",
            field=models.JSONField(blank=True, db_comment="the last HostFacts", default=dict),
        ),
        migrations.AddField(
            model_name="node",
            name="key_since",
            field=models.DateTimeField(
                blank=True, db_comment="since when it signs with this key", null=True
            ),
        ),
        migrations.AddField(
            model_name="node",
            name="policy_version",
            field=models.PositiveIntegerField(
                db_comment="of its owner's policy, as it last said that it follows", default=0
            ),
        ),
        migrations.AddField(
            model_name="node",
            name="previous_public_key",
            field=models.CharField(
                blank=True,
                db_comment="may still ask for the same rotation again, whose answer was lost",
                max_length=44,
            ),
        ),
        migrations.AddField(
            model_name="node",
            name="protocol_version",
            field=models.PositiveSmallIntegerField(default=1),
        ),
        migrations.AddField(
            model_name="node",
            name="vouched_at",
            field=models.DateTimeField(
                blank=True, db_comment="its owner answers for faults from before that", null=True
            ),
        ),
        migrations.AddField(
            model_name="node",
            name="warnings",
            field=models.JSONField(blank=True, db_comment="what it cannot do now", default=list),
        ),
        migrations.AlterField(
            model_name="gpu",
            name="idle_state",
            field=models.CharField(
                choices=[
                    ("unknown", "unknown"),
                    ("busy", "busy"),
                    ("parked", "parked"),
                    ("free", "free"),
                    ("offerable", "offerable"),
                ],
                default=agents.protocol.messages.IdleState["UNKNOWN"],
                max_length=20,
            ),
        ),
        migrations.AddConstraint(
            model_name="meterreading",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("attached_seconds__isnull", True),
                    ("attached_seconds__lte", models.F("up_seconds")),
                    _connector="OR",
                ),
                name="meter_attached_within_up",
            ),
        ),
        migrations.AddField(
            model_name="alarm",
            name="node",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="alarms", to="agents.node"
            ),
        ),
        migrations.AddField(
            model_name="gpuevent",
            name="gpu",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="events", to="agents.gpu"
            ),
        ),
        migrations.AddField(
            model_name="gpuevent",
            name="node",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="events", to="agents.node"
            ),
        ),
        migrations.AddField(
            model_name="outage",
            name="gpu",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="outages", to="agents.gpu"
            ),
        ),
        migrations.AddField(
            model_name="outage",
            name="opened_by",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="agents.gpuevent",
            ),
        ),
        migrations.AddField(
            model_name="policy",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="node_policies",
                to="marketplace.organization",
            ),
        ),
        migrations.AddIndex(
            model_name="alarm",
            index=models.Index(
                condition=models.Q(("settled_at__isnull", True)),
                fields=["gpu_uuid"],
                name="alarm_open_by_gpu",
            ),
        ),
        migrations.AddConstraint(
            model_name="alarm",
            constraint=models.UniqueConstraint(
                condition=models.Q(("settled_at__isnull", True)),
                fields=("node", "kind", "gpu_uuid"),
                name="alarm_is_open_once",
            ),
        ),
        migrations.AddIndex(
            model_name="gpuevent",
            index=models.Index(fields=["gpu", "at"], name="gpu_event_by_gpu"),
        ),
        migrations.AddIndex(
            model_name="gpuevent",
            index=models.Index(
                condition=models.Q(("lease_id", ""), _negated=True),
                fields=["lease_id", "at"],
                name="gpu_event_by_lease",
            ),
        ),
        migrations.AddConstraint(
            model_name="gpuevent",
            constraint=models.UniqueConstraint(
                fields=("node", "enrolment", "epoch", "sequence"), name="gpu_event_is_unique"
            ),
        ),
        migrations.AddIndex(
            model_name="outage",
            index=models.Index(fields=["gpu", "starts_at"], name="outage_by_gpu"),
        ),
        migrations.AddConstraint(
            model_name="outage",
            constraint=models.UniqueConstraint(
                condition=models.Q(("ends_at__isnull", True)),
                fields=("gpu",),
                name="outage_is_open_once",
            ),
        ),
        migrations.AddConstraint(
            model_name="outage",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("ends_at__isnull", True),
                    ("ends_at__gte", models.F("starts_at")),
                    _connector="OR",
                ),
                name="outage_ends_after_start",
            ),
        ),
        migrations.AddConstraint(
            model_name="policy",
            constraint=models.UniqueConstraint(
                fields=("organization", "version"), name="policy_version_is_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="policy",
            constraint=models.CheckConstraint(
                condition=models.Q(("version__gte", 1)), name="policy_version_is_positive"
            ),
        ),
        migrations.RunSQL(GUARD, DROP_GUARD),
    ]
