"""Plain text, Markdown and reStructuredText: kept as they are written, their title found."""

from __future__ import annotations

import re
from itertools import pairwise

from aaflow.operators.readers.notices import Unreadable
from aaflow.operators.readers.options import LoadOptions, Split
from aaflow.operators.readers.sources import read_whole

_ATX = re.compile(r" {0,3}#{1,6}[ \t](.*)")
_SETEXT = re.compile(r" {0,3}(?:=+|-+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*\r?\n", re.DOTALL | re.MULTILINE)
_FRONT_FIELD = re.compile(r"^([A-Za-z_][\w-]*):[ \t]*(.*)$", re.MULTILINE)
_QUOTED = re.compile(r"""(["'])(.*)\1[ \t]*(?:#.*)?$""")
_COMMENT = re.compile(r"[ \t]+#.*$")
_RST_LINE = re.compile(r"([!-/:-@[-`{-~])\1*$")

#: A title is looked for in this many characters from the beginning.
_HEAD = 65536


def read_text(split: Split, options: LoadOptions) -> tuple[str, dict[str, str]]:
    """Text and fields (the title; Markdown's front matter) of a txt, md or rst file.

    Raises:
        Unreadable: empty, too long or binary.
        UnicodeDecodeError: the bytes are not in the encoding.
        OSError: the file can't be read.
    """
    text = decode(read_whole(split, options.max_record_bytes), options)
    if split.format == "md":
        return text, markdown_fields(text[:_HEAD])
    title = rst_title(text[:_HEAD]) if split.format == "rst" else None
    return text, {"title": title} if title else {}


def decode(data: bytes, options: LoadOptions) -> str:
    """The text of a whole file, without its byte order mark.

    Raises:
        Unreadable: it holds NUL bytes.
        UnicodeDecodeError: the bytes are not in the encoding.
    """
    if options.utf8 and (nul := data.find(b"\0")) >= 0:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        hint = "; it looks like UTF-16: read it with --encoding utf-16" if wide else ""
        raise Unreadable(f"binary content (NUL at byte {nul}){hint}")
    return data.decode(options.encoding).removeprefix("\ufeff")


def markdown_fields(text: str) -> dict[str, str]:
    """The scalars of the front matter, and the first heading outside of code where that has no title."""
    fields: dict[str, str] = {}
    if front := _FRONT_MATTER.match(text):
        found = {name: _scalar(value.strip()) for name, value in _FRONT_FIELD.findall(front[1])}
        fields = {name: value for name, value in found.items() if value}
        text = text[front.end() :]
    title = fields.get("title") or _first_heading(text)
    return {**fields, "title": title} if title else fields


def _scalar(value: str) -> str:
    """A plain or quoted YAML scalar of one line, without its comment; empty for anything else."""
    if quoted := _QUOTED.match(value):
        return quoted[2]
    return "" if value[:1] in ("|", ">", "[", "{", "&", "*", "!", "#") else _COMMENT.sub("", value)


def _first_heading(text: str) -> str | None:
    fence, previous = "", ""
    for line in text.splitlines():
        if mark := _FENCE.match(line):
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence):
                fence = ""
            previous = ""
        elif not fence:
            if heading := _ATX.match(line):
                return _without_closing(heading[1].strip())
            if previous and _SETEXT.match(line) and not previous.startswith(("    ", "\t", "- ", "* ", "> ")):
                return previous.strip()
            previous = line if line.strip() else ""
    return None


def _without_closing(heading: str) -> str | None:
    """A heading without the number signs that may close it."""
    bare = heading.rstrip("#")
    return (bare.rstrip() if not bare or bare[-1] in " \t" else heading) or None


def rst_title(text: str) -> str | None:
    """The first section title: a line underlined with one punctuation character, at least as long as itself."""
    lines = [line.rstrip() for line in text.splitlines()]
    for line, under in pairwise(lines):
        if line and _RST_LINE.match(under) and not _RST_LINE.match(line) and len(under) >= max(2, len(line.strip())):
            return line.strip()
    return None
