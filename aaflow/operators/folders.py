"""Local folders: every file below one, whatever its name and wherever links lead, and the globs that choose some."""

from __future__ import annotations

import errno
import heapq
import os
import re
import stat
from collections.abc import Callable, Iterator

#: A file's name relative to where the walk began ('/' between its parts), its path, and its status.
Found = tuple[str, bytes, os.stat_result]
#: Is told the relative name of what was left out, and why.
Skip = Callable[[str, str], None]


def walk(folder: bytes, *, hidden: bool, skip: Skip) -> Iterator[Found]:
    """The regular files below ``folder``, in no order.

    Links are followed, but no folder is entered twice: folders of the tree itself come first, then what links lead to,
    in the order of their names. So a file has the same name in every walk, and loops end.

    Args:
        folder: absolute path.
        hidden: whether names that begin with a dot are listed too.
        skip: is told of everything that can't be read.
    """
    seen = set(_folders_above(folder))
    folders: list[tuple[str, bytes]] = []
    links: list[tuple[str, bytes]] = [("", folder)]  # a heap
    while folders or links:
        linked = not folders
        name, path = heapq.heappop(links) if linked else folders.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                skip(name, _seen_before(path) if linked else "this folder is listed already, mounted elsewhere")
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith(b".") and not hidden:
                        continue
                    yield from _entry(entry, f"{name}/" if name else "", folders, links, skip)
        except OSError as error:
            skip(name, f"folder: {_os_reason(error)}")


def _folders_above(folder: bytes) -> Iterator[tuple[int, int]]:
    """A link that leads there would bring the walk back to where it began."""
    path = os.path.realpath(folder)
    while path != b"/":
        path = os.path.dirname(path)
        status = os.stat(path)
        yield status.st_dev, status.st_ino


def _entry(
    entry: os.DirEntry[bytes],
    prefix: str,
    folders: list[tuple[str, bytes]],
    links: list[tuple[str, bytes]],
    skip: Skip,
) -> Iterator[Found]:
    try:
        name = prefix + entry.name.decode()
    except UnicodeDecodeError:
        skip(prefix + entry.name.decode(errors="backslashreplace"), "its name is not valid UTF-8; rename it")
        return
    try:
        if entry.is_dir(follow_symlinks=False):
            folders.append((name, entry.path))
            return
        status = entry.stat()
    except OSError as error:
        skip(name, _link_reason(entry.path, error) if entry.is_symlink() else _os_reason(error))
        return
    if stat.S_ISREG(status.st_mode):
        yield name, entry.path, status
    elif stat.S_ISDIR(status.st_mode):
        heapq.heappush(links, (name, entry.path))
    else:
        skip(name, NOT_REGULAR)


NOT_REGULAR = "not a regular file but a pipe, socket or device"


def _seen_before(link: bytes) -> str:
    target = os.path.realpath(link)
    above = os.path.realpath(os.path.dirname(link))
    if above == target or above.startswith(target.rstrip(b"/") + b"/"):
        return "link loop: it leads back to a folder that it is in"
    return "link to a folder that is listed already"


def _link_reason(path: bytes, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "link loop: the link leads back to itself"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"link to nowhere: {os.fsdecode(os.readlink(path))!r} does not exist"
    return _os_reason(error)


def _os_reason(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "permission denied; make it readable for the user who runs this"
    return f"can't be read: {error.strerror}"


def has_wildcard(path: str) -> bool:
    """Whether ``path`` is a glob."""
    return any(sign in path for sign in "*?[")


def split_glob(path: str) -> tuple[str, str]:
    """The longest leading part of a glob without a wildcard (a folder), and the pattern below it."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if has_wildcard(part))
    return "/".join(parts[:first]) or ("/" if path.startswith("/") else "."), "/".join(parts[first:])


def glob_regex(pattern: str, *, hidden: bool) -> re.Pattern[str]:
    """Matches relative names as a shell does: ``*``, ``?``, ``[…]`` inside a part, ``**`` for any number of folders.

    Unless ``hidden``, a wildcard does not match the dot that a part begins with.
    """
    dot = "" if hidden else r"(?!\.)"
    regex = ""
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            regex += f"(?:{dot}[^/]+/)*" + (f"{dot}[^/]+" if last else "")
        else:
            regex += ("" if part.startswith(".") else dot) + _part_regex(part) + ("" if last else "/")
    return re.compile(regex, re.DOTALL)


def _part_regex(part: str) -> str:
    regex, at = "", 0
    while at < len(part):
        sign, at = part[at], at + 1
        if sign == "*":
            regex += "[^/]*"
        elif sign == "?":
            regex += "[^/]"
        elif sign == "[" and (end := part.find("]", at + 1 + (part[at : at + 1] == "!"))) > 0:
            inner = part[at:end].replace("\\", r"\\").replace("[", r"\[")
            regex += f"[{'^' + inner[1:] if inner.startswith('!') else inner.replace('^', chr(92) + '^', 1)}]"
            at = end + 1
        else:
            regex += re.escape(sign)
    return regex
