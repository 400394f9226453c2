"""Labels of nodes: the owner's own words, by which its listings select."""

import datetime as dt
from collections.abc import Mapping

from django.db import transaction

from agents.models import Node
from marketplace import audit
from marketplace.core.text import check_labels


@transaction.atomic
def set_labels(*, node: Node, labels: Mapping[str, str], at: dt.datetime, actor: str) -> Node:
    """Replace a node's labels. What is already sold on it stays sold, whatever listing it then matches.

    :raises InvalidValue: when there are too many labels, or one does not fit.
    """
    check_labels(labels, pointer="/labels")
    locked = Node.objects.select_for_update(no_key=True).get(pk=node.pk)
    before, locked.labels = locked.labels, dict(labels)
    locked.save(update_fields=["labels"])
    audit.record(
        at=at,
        actor=actor,
        action="node.labelled",
        object_id=locked.pk,
        organization=locked.organization,
        detail={"from": before, "to": locked.labels},
    )
    return locked
