"""README and docs: links lead somewhere, examples run, command lines are ones that the command takes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from aaflow.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_INLINE = re.compile(r"`(aaflow(?: [^`]*)?)`")
_VARIABLES = re.compile(r"^(?:[A-Z_]+=\S+ )*")


def _blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Words behind the language, and the text, of every block in it."""
    found = [(match["info"].split(), match["body"]) for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [(" ".join(info[1:]), body) for info, body in found if info[:1] == [language]]


def _anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_to_a_file_and_a_heading(name: str) -> None:
    page = ROOT / name
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in (match["target"] for match in _LINK.finditer(text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("name", NAMES)
def test_python_examples_are_valid(name: str) -> None:
    for _, body in _blocks(ROOT / name, "python"):
        compile(body, name, "exec")


@pytest.mark.parametrize("name", [name for name in NAMES if any(i for i, _ in _blocks(ROOT / name, "python"))])
def test_runnable_examples_run(name: str, tmp_path: Path) -> None:
    """The runnable blocks of a page are one program, in a folder that holds ``docs``."""
    program = "\n".join(body for info, body in _blocks(ROOT / name, "python") if info == "runnable")
    (tmp_path / "example.py").write_text(program, encoding="utf-8")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _resolve(words: list[str]) -> tuple[list[str], typer.core.TyperCommand | typer.core.TyperGroup, list[str]]:
    """The names of a command, the command, and the words behind its names."""
    command, names = get_command(app), ["aaflow"]
    while words and isinstance(command, typer.core.TyperGroup) and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{' '.join(names)} has no command {words[0]!r}"
        command, names = command.commands[words[0]], [*names, words[0]]
        words = words[1:]
    return names, command, words


def _shell_lines(page: Path) -> Iterator[str]:
    """Lines of indented and of shell blocks that start ``aaflow``, without variables, comments and pipes."""
    text = page.read_text(encoding="utf-8")
    indented = re.findall(r"^ {4}(\S.*)$", _FENCE.sub("", text), re.MULTILINE)
    fenced = [
        line for body in (b for _, b in [*_blocks(page, "bash"), *_blocks(page, "sh")]) for line in body.split("\n")
    ]
    for line in (*indented, *fenced):
        bare = _VARIABLES.sub("", line).split(" | ")[0]
        if bare.startswith("aaflow "):
            yield bare


@pytest.mark.parametrize("name", NAMES)
def test_command_lines_can_be_given_as_they_stand(name: str) -> None:
    for line in _shell_lines(ROOT / name):
        names, command, words = _resolve(shlex.split(line, comments=True)[1:])
        command.make_context(" ".join(names), words)  # raises UsageError, with what is wrong


@pytest.mark.parametrize("name", NAMES)
def test_commands_named_in_the_text_exist(name: str) -> None:
    text = _FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    for span in _INLINE.findall(text):
        words = [word for word in shlex.split(span)[1:] if not re.fullmatch(r"[A-Z]+…?", word)]
        _, command, rest = _resolve(words)
        known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        unknown = {word for word in rest if word.startswith("-")} - known - {"--help"}
        assert not unknown, f"`{span}`"


def _commands(command: object, names: tuple[str, ...] = ("aaflow",)) -> Iterator[tuple[str, object]]:
    if isinstance(command, typer.core.TyperGroup):
        for name, inner in command.commands.items():
            if not inner.hidden:
                yield from _commands(inner, (*names, name))
    else:
        yield " ".join(names), command


def test_every_command_and_every_option_is_described() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    shown = {" ".join(_resolve(shlex.split(line, comments=True)[1:])[0]) for line in _shell_lines(ROOT / "docs/cli.md")}
    missing = []
    for name, command in _commands(get_command(app)):
        missing += [name] if name not in shown else []
        for parameter in command.params:  # type: ignore[attr-defined]
            flags = [flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("--")]
            missing += [f"{name} {flags}"] if flags and not any(flag in page for flag in flags) else []
    assert not missing
