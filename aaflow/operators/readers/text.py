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
_FRONT_TITLE = re.compile(r"^title:(.*)$", re.MULTILINE)
_RST_LINE = re.compile(r"([!-/:-@[-`{-~])\1*$")

#: A title is looked for in this many characters from the beginning.
_HEAD = 65536


def read_text(split: Split, options: LoadOptions) -> tuple[str, str | None]:
    """Text and title of a txt, md or rst file.

    Raises:
        Unreadable: empty, too long or binary.
        UnicodeDecodeError: the bytes are not in the encoding.
        OSError: the file can't be read.
    """
    text = decode(read_whole(split, options.max_record_bytes), options)
    if split.format == "md":
        return text, markdown_title(text[:_HEAD])
    if split.format == "rst":
        return text, rst_title(text[:_HEAD])
    return text, None


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


def markdown_title(text: str) -> str | None:
    """The title in the front matter, else the first heading outside of code."""
    if front := _FRONT_MATTER.match(text):
        if title := _FRONT_TITLE.search(front[1]):
            return title[1].strip().strip("\"'") or None
        text = text[front.end() :]
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
