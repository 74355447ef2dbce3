"""HTML to text: what a reader sees, one line per block."""

from __future__ import annotations

import re

from lxml import etree

from aaflow.operators.readers.notices import Unreadable
from aaflow.operators.readers.options import LoadOptions, Split
from aaflow.operators.readers.sources import read_whole
from aaflow.operators.readers.text import decode

_HIDDEN = frozenset({"script", "style", "template", "noscript", "head", "svg", "iframe", "object"})
_PARAGRAPHS = frozenset({"blockquote", "dl", "h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre", "table", "ul"})
_BLOCKS = _PARAGRAPHS | {
    *("address", "article", "aside", "body", "caption", "center", "dd", "details", "dialog", "div", "dt", "fieldset"),
    *("figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "li", "main", "menu", "nav"),
    *("option", "section", "summary", "tbody", "tfoot", "thead", "tr"),
}
_SPACE = re.compile(r"[ \t\n\r\f]+")
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([A-Za-z0-9_:.-]+)", re.IGNORECASE)


def read_html(split: Split, options: LoadOptions) -> tuple[str, dict[str, str]]:
    """Text and fields (``<title>``, named ``<meta>``) of an HTML file.

    Raises:
        Unreadable: empty, too long, binary, or nothing to read in it.
        UnicodeDecodeError: the bytes are in neither ``options.encoding`` nor the charset that the file names.
        OSError: the file can't be read.
    """
    data = read_whole(split, options.max_record_bytes)
    return html_text(_decode_html(data, options))


def html_text(page: str) -> tuple[str, dict[str, str]]:
    """The visible text of a page, and its fields.

    Raises:
        Unreadable: the page has no element or no text.
    """
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True, no_network=True)
    try:
        root = etree.fromstring(page.encode(), parser)
    except etree.LxmlError as error:
        raise Unreadable(f"not readable as HTML: {error}") from None
    if root is None:
        raise Unreadable("no text in this HTML file")
    if len(parser.error_log.filter_from_fatals()):
        # libxml2 stops there and gives what it has, as if the page were whole.
        raise Unreadable(f"not readable as HTML: {parser.error_log.filter_from_fatals()[0].message}")
    text = _visible(root)
    if not text:
        raise Unreadable("no text in this HTML file; its content may be made by scripts")
    return text, _fields(root)


def _fields(root: etree._Element) -> dict[str, str]:
    """``<meta name=… content=…>`` by name, the first of a name; ``title`` is that of the page where it has one."""
    fields: dict[str, str] = {}
    named = ((meta.get("name"), meta.get("content")) for meta in root.iterfind(".//meta"))
    for name, content in (("title", root.findtext(".//title")), *named):
        clean = _SPACE.sub(" ", content or "").strip()
        if name and clean:
            fields.setdefault(name, clean)
    return fields


def _decode_html(data: bytes, options: LoadOptions) -> str:
    try:
        return decode(data, options)
    except UnicodeDecodeError as error:
        charset = _CHARSET.search(data, 0, 4096)
        if charset is None:
            raise
        try:
            return data.decode(charset[1].decode())
        except (LookupError, UnicodeDecodeError):
            raise error from None


def _visible(root: etree._Element) -> str:
    """Text in document order. Runs of white space are one blank, except in ``<pre>``; blocks begin a new line."""
    lines: list[str] = []
    line: list[str] = []
    pre = 0

    def add(text: str | None) -> None:
        if text:
            line.append(text if pre else _SPACE.sub(" ", text))

    def flush(gap: bool) -> None:
        joined = "".join(line)
        joined = joined.strip("\n").rstrip() if pre else re.sub(" {2,}", " ", joined).strip()
        line.clear()
        if joined:
            lines.append(joined)
        if gap and lines and lines[-1]:
            lines.append("")

    skipped: etree._Element | None = None
    for event, element in etree.iterwalk(root, events=("start", "end")):
        tag = element.tag
        if skipped is not None:
            if event == "end" and element is skipped:
                skipped = None
                add(element.tail)
        elif event == "start":
            if tag in _HIDDEN:
                skipped = element
                continue
            if tag == "br":
                line.append("\n") if pre else flush(False)
            elif tag in _BLOCKS:
                flush(tag in _PARAGRAPHS)
                pre += tag == "pre"
            elif tag in ("td", "th") and line:
                line.append(" | ")
            add(element.text)
        else:
            if tag in _BLOCKS:
                flush(tag in _PARAGRAPHS)
                pre -= tag == "pre"
            if element is not root:
                add(element.tail)
    flush(False)
    return "\n".join(lines).strip("\n")
