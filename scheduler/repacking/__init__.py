"""Give promises that have not started other places: to let a request in, and to heal fragmentation.

What a tenant was promised is GPUs of a model, region, tier and spread for a window, at a rate; not the
nodes. So until half an hour before its start a promise may move to any places that the listings sell under
which it was priced. All of a move happens in one transaction, or nothing of it, and is written down.
"""

from scheduler.repacking.healing import heal
from scheduler.repacking.room import make_room, open_room

__all__ = ["heal", "make_room", "open_room"]
