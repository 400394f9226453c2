"""Where requests go: arithmetic on hours, nodes and islands. No database, no clock."""

from scheduler.packing.layout import Layout, Piece, Placement, Request
from scheduler.packing.packer import Packer

__all__ = ["Layout", "Packer", "Piece", "Placement", "Request"]
