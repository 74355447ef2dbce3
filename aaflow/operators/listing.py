"""What there is to read: paths, globs and URLs become a listing of files and of pieces of big files.

A listing depends on names, sizes and times only; nothing is read but the footers of big parquet files.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aaflow.errors import InputError
from aaflow.hashing import partition_of
from aaflow.operators.folders import NOT_REGULAR, glob_regex, has_wildcard, split_glob, walk
from aaflow.operators.readers.notices import Notices, shorten
from aaflow.operators.readers.options import COMPRESSIONS, CUT_BY_BYTES, EXTENSIONS, RECORD_FORMATS, LoadOptions, Split
from aaflow.operators.readers.parquet import row_ranges
from aaflow.operators.readers.sources import local_path, local_uri, open_raw
from aaflow.schema import LISTING, NOTICES

__all__ = ["Listing", "LoadOptions", "cut_tranches", "list_inputs", "split_sizes"]

#: What a file costs beside its bytes, in bytes read.
_FILE_BYTES = 1024

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NAMED = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Listing:
    """The inputs of a run.

    Attributes:
        table: rows of :data:`aaflow.schema.LISTING` by rising ``source`` and ``start``; ``tranche`` is 0.
        notices: rows of :data:`aaflow.schema.NOTICES`: what is there but can't be listed.
        roots: URIs of the folders that were listed whole, so that what is no longer there is known to be gone. The
            folder of a single file or of a glob is not among them.
    """

    table: pa.Table
    notices: pa.Table
    roots: tuple[str, ...]


@dataclass
class _Files:
    """One row per file, by columns."""

    root: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    uri: list[str] = field(default_factory=list)
    format: list[str] = field(default_factory=list)
    compression: list[str] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    mtime_ns: list[int] = field(default_factory=list)


def list_inputs(paths: Sequence[str], options: LoadOptions) -> Listing:
    """The files and pieces of files that ``paths`` hold.

    Args:
        paths: folders, files, globs (``docs/**/*.md``) and fsspec URLs; ``name=path`` puts ``name/`` before every
            source of a path, for paths that hold files of the same relative name. A file is named relative to the
            folder or the part of the glob without wildcards that was given, a single file relative to its folder.
        options: how they are to be read.

    Raises:
        InputError: a path is missing, a glob matches nothing, or two files have one name.
    """
    notices = Notices(options.partitions)
    files = _Files()
    roots: list[str] = []
    for given in paths:
        root = _Root(given, options, files, notices)
        if root.add_files() and root.uri not in roots:
            roots.append(root.uri)
    keep = _one_per_source(files)
    table = _split(files, keep, options)
    batch = notices.take()
    skipped = pa.Table.from_batches([batch] if batch is not None else [], schema=NOTICES)
    return Listing(table, skipped.sort_by("source"), tuple(roots))


class _Root:
    """One of the paths given."""

    def __init__(self, given: str, options: LoadOptions, files: _Files, notices: Notices) -> None:
        self._given, self._options, self._files, self._notices = given, options, files, notices
        self._prefix, self._path = "", given
        if not given:
            raise InputError("load: a path is empty")
        named = _NAMED.fullmatch(given)
        if named and not os.path.lexists(split_glob(given)[0] if has_wildcard(given) else given):
            self._prefix, self._path = f"{named[1]}/", named[2]
        self.uri = ""

    def add_files(self) -> bool:
        """Adds the files to the listing; whether the whole of :attr:`uri` was listed."""
        if self._path.startswith("file://"):
            bare = self._path[len("file://") :]
            self._path = bare if os.path.lexists(bare) else os.fsdecode(local_path(self._path) or b"")
        if _URL.match(self._path):
            return self._list_remote(self._path)
        if os.path.lexists(self._path) or not has_wildcard(self._path):
            return self._list_local()
        base, pattern = split_glob(self._path)
        self._list_glob(os.path.expanduser(base), pattern)
        return False

    def _list_local(self) -> bool:
        path = os.fsencode(os.path.abspath(os.path.expanduser(self._path)))
        try:
            status = os.stat(path)
        except OSError as error:
            raise InputError(f"load: can't use {self._given!r}: {error.strerror}") from None
        if stat.S_ISDIR(status.st_mode):
            self._folder(path, None)
            return True
        folder, name = os.path.split(path)
        self.uri = local_uri(folder)
        source = self._prefix + name.decode(errors="backslashreplace")
        if stat.S_ISREG(status.st_mode):
            self._add(source, local_uri(path), status.st_size, status.st_mtime_ns, explicit=True)
        else:
            self._notices.add(NOT_REGULAR, source)
        return False

    def _list_glob(self, base: str, pattern: str) -> None:
        before = len(self._files.source) + len(self._notices)
        if os.path.isdir(base):
            self._folder(os.fsencode(os.path.abspath(base)), pattern)
        if len(self._files.source) + len(self._notices) == before:
            raise InputError(f"load: no file matches {self._given!r} (a folder is given without a wildcard)")

    def _folder(self, path: bytes, pattern: str | None) -> None:
        self.uri = local_uri(path)
        hidden = self._options.hidden or any(p.startswith(".") for p in (pattern or "").split("/"))
        wanted = glob_regex(pattern, hidden=self._options.hidden) if pattern is not None else None

        def skip(name: str, reason: str) -> None:
            if wanted is None or wanted.fullmatch(name):
                self._notices.add(reason, self._prefix + name)

        quoted: dict[bytes, str] = {}
        for name, file, status in walk(path, hidden=hidden, skip=skip):
            if wanted is None or wanted.fullmatch(name):
                folder, _, last = file.rpartition(b"/")
                if folder not in quoted:
                    quoted[folder] = local_uri(folder)
                uri = f"{quoted[folder]}/{local_uri(last)[len('file://') :]}"
                self._add(self._prefix + name, uri, status.st_size, status.st_mtime_ns)

    def _list_remote(self, url: str) -> bool:
        import fsspec

        if "::" in url:
            raise InputError(f"load: {self._given!r}: chained URLs are not supported; unpack the archive first")
        web = url.startswith(("http://", "https://"))
        try:
            fs, path = fsspec.core.url_to_fs(url)
            if "*" in url if web else has_wildcard(url):
                base, whole = split_glob(path)[0], False
                found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
            elif path.endswith("/") if web else fs.isdir(path):
                base, whole, found = path, True, fs.find(path, detail=True)
            else:
                base, whole, found = path.rpartition("/")[0], False, {path: fs.info(path)}
        except Exception as error:  # a store's client raises what it likes
            what = "it does not exist" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
            raise InputError(f"load: can't use {self._given!r}: {what}") from error
        if not found and not whole:
            raise InputError(f"load: no file matches {self._given!r}")
        base = base.rstrip("/")
        self.uri = str(fs.unstrip_protocol(base))
        single = len(found) == 1 and path in found
        for name, info in found.items():
            source = name[len(base) :].lstrip("/")
            if not (self._options.hidden or single) and any(part.startswith(".") for part in source.split("/")):
                continue
            size = info.get("size")
            uri = str(fs.unstrip_protocol(name))
            self._add(self._prefix + source, uri, -1 if size is None else int(size), _modified(info), explicit=single)
        return whole

    def _add(self, source: str, uri: str, size: int, mtime_ns: int, *, explicit: bool = False) -> None:
        kind, compression, ending = _format_of(source)
        kind = self._options.format or kind or ("txt" if explicit else "")
        if not kind:
            unknown = f"unknown format .{shorten(ending)[1:-1]}" if ending else "no ending that says its format"
            self._notices.add(f"{unknown}; --format txt reads it as text", source)
            return
        files = self._files
        files.root.append(self.uri)
        files.source.append(source)
        files.uri.append(uri)
        files.format.append(kind)
        files.compression.append(compression)
        files.size.append(size)
        files.mtime_ns.append(mtime_ns)


def _format_of(source: str) -> tuple[str | None, str, str]:
    """Format, compression and the ending that decided, of a file name."""
    name = source.rpartition("/")[2].lower()
    compression = ""
    stem, dot, ending = name.rpartition(".")
    if dot and ending in COMPRESSIONS:
        compression = ending
        stem, dot, ending = stem.rpartition(".")
    if not dot or not stem:
        return None, compression, ""
    return EXTENSIONS.get(ending), compression, ending


def _modified(info: dict[str, Any]) -> int:
    """Time of the last change in nanoseconds, under whatever name a store gives it; 0 where it gives none."""
    for key in ("mtime", "LastModified", "Last-Modified", "last_modified", "modified", "updated", "created"):
        value = info.get(key)
        if isinstance(value, str):
            try:
                value = parsedate_to_datetime(value) if "," in value else datetime.fromisoformat(_zoned(value))
            except ValueError:
                continue
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
            return round(aware.timestamp() * 1e6) * 1000
        if isinstance(value, (int, float)):
            return int(value * 1e9)
    return 0


def _zoned(value: str) -> str:
    return value.replace("Z", "+00:00")  # Python before 3.11 does not know it


def _one_per_source(files: _Files) -> list[int]:
    """Indices of the files by rising source; a file that was given twice counts once.

    Raises:
        InputError: two files have one name.
    """
    order = pc.sort_indices(pa.array(files.source, pa.string())).to_pylist()
    keep: list[int] = []
    for index in order:
        if keep and files.source[keep[-1]] == files.source[index]:
            if files.uri[keep[-1]] != files.uri[index]:
                first, second = files.root[keep[-1]], files.root[index]
                raise InputError(
                    f"load: {first} and {second} both hold {files.source[index]!r}; name the paths to tell their "
                    f"documents apart, as in a={first} b={second}"
                )
            continue
        keep.append(index)
    return keep


def _split(files: _Files, keep: list[int], options: LoadOptions) -> pa.Table:
    """The listing, with big files of records cut into ranges."""
    index: list[int] = []
    start: list[int] = []
    end: list[int] = []
    for at in keep:
        for low, high in _ranges(files, at, options):
            index.append(at)
            start.append(low)
            end.append(high)
    taken = pa.array(index, pa.int64())
    columns = {name: pa.array(values, LISTING.field(name).type).take(taken) for name, values in vars(files).items()}
    records = pc.is_in(columns["format"], pa.array(sorted(RECORD_FORMATS)))
    partition = partition_of(columns["source"], options.partitions)
    columns |= {
        "size": pc.max_element_wise(columns["size"], 0),
        "start": pa.array(start, pa.int64()),
        "end": pa.array(end, pa.int64()),
        "records": records,
        "partition": pc.if_else(records, pa.scalar(-1, pa.int32()), partition),
        "tranche": pa.array(np.zeros(len(index), dtype=np.int32)),
    }
    return pa.table([columns[name] for name in LISTING.names], schema=LISTING)


def _ranges(files: _Files, at: int, options: LoadOptions) -> Iterator[tuple[int, int]]:
    kind, size = files.format[at], files.size[at]
    if size > options.split_bytes and not files.compression[at]:
        if kind in CUT_BY_BYTES and options.utf8:
            for start in range(0, size, options.split_bytes):
                yield start, min(start + options.split_bytes, size)
            return
        if kind == "parquet":
            yield from _parquet_ranges(files, at, options)
            return
    yield 0, size


def _parquet_ranges(files: _Files, at: int, options: LoadOptions) -> Iterator[tuple[int, int]]:
    size = files.size[at]
    split = Split(files.root[at], files.source[at], files.uri[at], "parquet", "", size, 0, 0, size, True, -1, 0)
    try:
        with open_raw(split) as file:
            metadata = pq.ParquetFile(file).metadata
    except Exception:  # whatever is wrong with it, its reader says so
        yield 0, size
    else:
        yield from row_ranges(metadata, size, options.split_bytes)


def split_sizes(table: pa.Table) -> npt.NDArray[np.int64]:
    """Bytes of each row of a listing as they are stored, int64 [rows]; 0 where the size isn't known before reading."""
    start, end, size = (table[name].to_numpy() for name in ("start", "end", "size"))
    sizes: npt.NDArray[np.int64] = np.maximum(end - start, 0)
    by_row = pc.equal(table["format"], "parquet").to_numpy() & ~((start == 0) & (end == size))
    if by_row.any():
        uris = table.filter(pa.array(by_row))["uri"].combine_chunks().dictionary_encode()
        file = uris.indices.to_numpy()
        rows = np.zeros(len(uris.dictionary), dtype=np.int64)
        np.maximum.at(rows, file, end[by_row])
        sizes[by_row] = sizes[by_row] * size[by_row] // np.maximum(rows[file], 1)
    return sizes


def cut_tranches(table: pa.Table, tranche_bytes: int) -> pa.Table:
    """A listing whose ``tranche`` counts slices of about ``tranche_bytes`` bytes, in its order, from 0.

    A file counts as ``_FILE_BYTES`` at least, so that a million empty ones don't make one slice.
    """
    sizes = np.maximum(split_sizes(table), _FILE_BYTES)
    before = np.cumsum(sizes) - sizes
    tranche = np.unique(before // tranche_bytes, return_inverse=True)[1].astype(np.int32)
    return table.set_column(table.schema.get_field_index("tranche"), LISTING.field("tranche"), pa.array(tranche))
