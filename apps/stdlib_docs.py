"""The documentation of Python's standard library, as ``pydoc`` knows it on this machine, made into a corpus.

Every public module, class and function is a passage of its own, and so is every method and property that has a text:
its name, its signature and its text, a class without the texts of its methods. One file of JSON lines per top-level
module, each record with ``id`` (the qualified name), ``title`` (the same), ``text``, ``kind`` and ``module``.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import pydoc
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

#: Importing these does something that a person would see, needs a screen, or they are programs and their tests.
SKIPPED = {"antigravity", "idlelib", "this", "turtledemo"}
SKIPPED_PARTS = {"__main__", "test", "tests"}

#: Seconds that importing and rendering may take; it takes about 5.
TIME_LIMIT = 120


class Passage(NamedTuple):
    """One record of the corpus."""

    id: str
    title: str
    text: str
    kind: str
    module: str


def render(folder: Path) -> int:
    """Write the corpus into ``folder`` and return its number of passages.

    The standard library is imported in a process of its own, without site-packages, standard input and a home folder.

    Raises:
        RuntimeError: the library could not be rendered; the text holds what Python said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The seed fixes the order in which sets of defaults are printed.
    environment = {"HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "PATH": os.defpath, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-s", "-S", os.path.abspath(__file__), "--write", str(folder.absolute())]
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                command, cwd=empty, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIME_LIMIT
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"rendering the standard library took over {TIME_LIMIT} s: {sys.executable}") from None
    if done.returncode != 0:
        raise RuntimeError(f"rendering the standard library failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return int(done.stdout)


def known_items(folder: Path) -> list[tuple[str, str]]:
    """Functions whose one-line summary is a line of no other passage: ``(summary, id)``, by id."""
    passages = [Passage(**json.loads(line)) for path in sorted(folder.glob("*.jsonl")) for line in path.open("rb")]
    lines = Counter(line.strip() for passage in passages for line in passage.text.splitlines())
    functions = sorted(passage for passage in passages if passage.kind == "function")
    summaries = ((pydoc.splitdoc(function.text.partition("\n\n")[2])[0], function.id) for function in functions)
    return [(summary, name) for summary, name in summaries if lines[summary] == 1]


def write(folder: Path) -> int:
    """Import the standard library here and write the corpus into ``folder``; :func:`render` calls it elsewhere."""
    warnings.simplefilter("ignore")
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        modules = list(_modules())
        passages = sorted(_passages(modules))
    files: dict[str, list[str]] = {}
    for passage in passages:
        line = json.dumps(passage._asdict(), ensure_ascii=False) + "\n"
        files.setdefault(passage.module.split(".")[0], []).append(line)
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(passages)


def _modules() -> Iterator[ModuleType]:
    """Every public module of the standard library that can be imported here."""
    for name in sorted(sys.stdlib_module_names - SKIPPED):
        if not name.startswith("_") or name == "__future__":
            yield from _tree(name)


def _tree(name: str) -> Iterator[ModuleType]:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit):  # for another system, or built without what it needs
        return
    yield module
    for _, part, _ in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if not part.startswith("_") and part not in SKIPPED_PARTS:
            yield from _tree(f"{name}.{part}")


def _passages(modules: list[ModuleType]) -> Iterator[Passage]:
    for module in modules:
        yield _passage(module.__name__, "module", module.__name__, module)
    for (module_name, name), thing in _members(modules).items():
        identity = f"{module_name}.{name}"
        yield _passage(identity, "class" if inspect.isclass(thing) else "function", module_name, thing)
        if inspect.isclass(thing):
            yield from _attributes(identity, module_name, thing)


def _attributes(identity: str, module: str, owner: type) -> Iterator[Passage]:
    """What a class defines itself and pydoc has a text for (its own, or that of what it overrides)."""
    for name, value in sorted(vars(owner).items()):
        if not name.startswith("_"):
            method = inspect.isroutine(value) or isinstance(value, (staticmethod, classmethod))
            thing = getattr(owner, name) if method else value
            if (method or inspect.isdatadescriptor(value)) and pydoc.getdoc(thing):
                yield _passage(f"{identity}.{name}", "method" if method else "property", module, thing)


def _members(modules: list[ModuleType]) -> dict[tuple[str, str], object]:
    """Public classes and functions, each once: under the module nearest to the top that makes it public.

    A name that is a module's too (``unittest.main``) stays the module's.
    """
    taken = {module.__name__ for module in modules}
    places: dict[int, tuple[int, str, str, object]] = {}
    for module in modules:
        for name, thing in vars(module).items():
            known = inspect.isclass(thing) or inspect.isroutine(thing)
            if name.startswith("_") or not known or f"{module.__name__}.{name}" in taken:
                continue
            if name in getattr(module, "__all__", ()) or getattr(thing, "__module__", None) == module.__name__:
                place = (module.__name__.count("."), module.__name__, name, thing)
                if id(thing) not in places or place[:3] < places[id(thing)][:3]:
                    places[id(thing)] = place
    return {(module_name, name): thing for _, module_name, name, thing in places.values()}


def _passage(identity: str, kind: str, module: str, thing: object) -> Passage:
    signature = ""
    if kind != "module":
        with suppress(Exception):  # a builtin without a readable one
            signature = _portable(str(inspect.signature(thing)))  # type: ignore[arg-type]
    text = f"{kind} {identity}{signature}\n\n{pydoc.getdoc(thing)}"
    return Passage(identity, identity, text.strip().encode("utf-8", "replace").decode(), kind, module)


def _portable(signature: str) -> str:
    """The signature without what differs from machine to machine and from run to run: addresses and folders."""
    signature = re.sub(r" at 0x[0-9a-fA-F]+", "", signature).replace(sys.executable, "python")
    signature = re.sub(r"environ\(\{.*?\}\)", "os.environ", signature)
    for folder in (sys.prefix, sys.base_prefix):
        signature = signature.replace(folder, "<prefix>")
    return signature


def main() -> None:
    """Render the corpus into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Render the documentation of the standard library into a corpus.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)  # the process that render() starts
    arguments = parser.parse_args()
    print(write(arguments.folder) if arguments.write else render(arguments.folder))


if __name__ == "__main__":
    main()
