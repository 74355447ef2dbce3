"""Who may connect to the edges of a run: whoever can read its run folder."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from aaflow.errors import EdgeError

#: ZAP domain of all sockets that listen.
DOMAIN = b"aaflow-edge"


@dataclass(frozen=True)
class EdgeKeys:
    """One CURVE key pair for both ends of all edges of a run, and a password for edges without encryption.

    Attributes:
        public: Z85.
        secret: Z85.
        password: hexadecimal.
    """

    public: bytes
    secret: bytes
    password: bytes

    def protect_listener(self, socket: zmq.Socket[bytes], *, encrypted: bool) -> None:
        """Let in only who knows the keys."""
        socket.zap_domain = DOMAIN
        if encrypted:
            socket.curve_server = True
            socket.curve_secretkey = self.secret
        else:
            socket.plain_server = True

    def protect_caller(self, socket: zmq.Socket[bytes], *, encrypted: bool) -> None:
        """Show the keys, and insist on them."""
        if encrypted:
            socket.curve_serverkey = self.public
            socket.curve_publickey = self.public
            socket.curve_secretkey = self.secret
        else:
            socket.plain_username = b"aaflow"
            socket.plain_password = self.password

    def admits(self, mechanism: bytes, credentials: list[bytes], *, encrypted: bool) -> bool:
        """The ZAP decision over one connection."""
        if encrypted:
            return mechanism == b"CURVE" and secrets.compare_digest(z85.encode(credentials[0]), self.public)
        return mechanism == b"PLAIN" and secrets.compare_digest(credentials[1], self.password)


def _path(run_folder: str | Path) -> Path:
    return Path(run_folder) / "keys" / "edges.json"


def write_edge_keys(run_folder: str | Path) -> None:
    """Make the keys of a run's edges, before its task groups start; mode 0600, replaced if they exist."""
    public, secret = zmq.curve_keypair()
    record = {"public": public.decode(), "secret": secret.decode(), "password": secrets.token_hex(32)}
    path = _path(run_folder)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(record, file)
    temporary.replace(path)


def read_edge_keys(run_folder: str | Path) -> EdgeKeys:
    """The keys that :func:`write_edge_keys` made.

    Raises:
        EdgeError: there are none, or they can't be read.
    """
    try:
        record = json.loads(_path(run_folder).read_text())
        return EdgeKeys(*(record[name].encode() for name in ("public", "secret", "password")))
    except (OSError, ValueError, KeyError) as error:
        raise EdgeError(
            f"run folder {run_folder}: the keys of its edges can't be read from keys/edges.json ({error!r}); "
            "the driver writes them, and only the user who started the run may read them"
        ) from error
