"""The program of the child process that owns the driver: plain values in, plain values out.

It knows the answers' shapes (dictionaries with the names of `agents.protocol`) but imports none of their
types: that would cost 6 MB of memory on every node. `agents.node.answers` builds the types in the parent.
"""
