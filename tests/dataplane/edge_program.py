"""The other end of an edge, as a process of its own: it connects, says so, and does nothing more until its stdin ends.

python edge_program.py FOLDER produce|consume FORM
"""

from __future__ import annotations

import sys

from edgeparts import edge, rows

from aaflow.dataplane.edge import Endpoint, Form, Message


def main(folder: str, role: str, form: str) -> None:
    with Endpoint(folder, "embed" if role == "produce" else "upsert", 0, address="127.0.0.1") as end:
        if role == "produce":
            sender = end.send_to(edge(), {0: Form(form)})[0]
            end.connect(30)
            sender.send(Message(b"first", (rows(300),)))
        else:
            end.receive_from(edge(), {0: Form(form)})
            end.connect(30)
        print("connected", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
