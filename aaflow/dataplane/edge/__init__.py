"""Edges: bounded channels of Arrow record batches between the ranks of two stages.

Inside a node the batches lie in shared memory and are read where they were written; between nodes they go over
ZeroMQ. See ``docs/dataplane.md`` for the bounds and for who notices what.
"""

from aaflow.dataplane.edge.endpoint import Endpoint
from aaflow.dataplane.edge.frames import split_rows
from aaflow.dataplane.edge.keys import write_edge_keys
from aaflow.dataplane.edge.receiver import Receiver
from aaflow.dataplane.edge.sender import Sender
from aaflow.dataplane.edge.spec import EdgeSpec, Form, Message
from aaflow.errors import EdgeCancelled, EdgeError, PeerLost

__all__ = [
    "EdgeCancelled",
    "EdgeError",
    "EdgeSpec",
    "Endpoint",
    "Form",
    "Message",
    "PeerLost",
    "Receiver",
    "Sender",
    "split_rows",
    "write_edge_keys",
]
