"""Opening a piece of input: local files directly, all else through fsspec; decompressed and decoded as it goes."""

from __future__ import annotations

import codecs
import lzma
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa

from aaflow.operators.readers.notices import Unreadable, over_limit
from aaflow.operators.readers.options import MIB, LoadOptions, Split

_LOCAL = "file://"
_ARROW_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}


def local_uri(path: bytes | str) -> str:
    """The ``file://`` URI of an absolute path; bytes that are not plain ASCII are percent-encoded."""
    return _LOCAL + quote(os.fsencode(path), safe="/~")


def local_path(uri: str) -> bytes | None:
    """The path of a ``file://`` URI, None for any other."""
    return unquote_to_bytes(uri[len(_LOCAL) :]) if uri.startswith(_LOCAL) else None


@contextmanager
def open_raw(split: Split) -> Iterator[BinaryIO]:
    """The file's bytes as they are stored, seekable."""
    path = local_path(split.uri)
    if path is not None:
        with open(path, "rb", buffering=0) as file:
            yield cast(BinaryIO, file)
        return
    import fsspec

    with fsspec.open(split.uri, "rb").open() as file:
        yield file


@contextmanager
def open_stream(split: Split) -> Iterator[Any]:
    """The file's decompressed bytes: something with ``read(size)``, from the file's beginning."""
    with ExitStack() as stack:
        raw = stack.enter_context(open_raw(split))
        if split.compression == "xz":
            yield stack.enter_context(lzma.open(raw))
        elif split.compression:
            codec = _ARROW_CODECS[split.compression]
            yield stack.enter_context(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec))
        else:
            yield raw


@contextmanager
def open_seekable(split: Split) -> Iterator[BinaryIO]:
    """The file's decompressed bytes, seekable: a compressed file is unpacked to a nameless temporary file."""
    with ExitStack() as stack:
        if not split.compression:
            yield stack.enter_context(open_raw(split))
            return
        stream = stack.enter_context(open_stream(split))
        spool = stack.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(stream, spool, MIB)
        spool.seek(0)
        yield cast(BinaryIO, spool)


@contextmanager
def open_utf8(split: Split, options: LoadOptions) -> Iterator[Any]:
    """:func:`open_stream`, decoded from ``options.encoding`` and given as UTF-8."""
    with open_stream(split) as stream:
        yield stream if options.utf8 else codecs.EncodedFile(stream, "utf-8", options.encoding)


def read_whole(split: Split, limit: int) -> bytes:
    """All decompressed bytes of a file.

    Raises:
        Unreadable: there are none, or more than ``limit``.
        OSError: and what decompression raises.
    """
    path = local_path(split.uri)
    if path is not None and not split.compression:
        # The common case, for which every system call counts.
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise over_limit(limit)
            data = file.readall()
    else:
        with open_stream(split) as stream:
            data = _read_up_to(stream, limit + 1)
    if not data:
        raise Unreadable("empty")
    if len(data) > limit:
        raise over_limit(limit)
    return data


def _read_up_to(stream: Any, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := stream.read(min(size, MIB))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
