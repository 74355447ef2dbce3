"""Files of a web server, which tells what changed or does not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import aaflow
from aaflow.errors import InputError
from aaflow.operators.listing import list_inputs
from aaflow.operators.readers import LoadOptions, read, splits
from aaflow.retrieval import ask_index


class Handler(SimpleHTTPRequestHandler):
    dated = True

    def send_header(self, keyword: str, value: str) -> None:
        if self.dated or keyword != "Last-Modified":
            super().send_header(keyword, value)

    def log_message(self, *words: object) -> None:
        """Nothing."""


class Undated(Handler):
    dated = False


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    """A folder and the URL of its server."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.txt").write_text("The ferry crosses at noon.")
    (folder / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    handler: Any = partial(getattr(request, "param", Handler), directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_of_a_web_server_are_read_by_url_and_as_a_folder(served: tuple[Path, str]) -> None:
    _, url = served
    options = LoadOptions()
    for given in ([f"{url}/a.txt", f"{url}/b.jsonl"], [f"{url}/"]):
        table = list_inputs(given, options).table
        assert table["source"].to_pylist() == ["a.txt", "b.jsonl"]
        found = [batch for split in splits(table) for batch, _ in read(split, options) if batch is not None]
        texts = [text for batch in found for text in batch["text"].to_pylist()]
        assert texts == ["The ferry crosses at noon.", "one", "two"]


def test_what_a_web_server_lacks_is_an_error_that_names_it(served: tuple[Path, str]) -> None:
    _, url = served
    with pytest.raises(InputError, match=r"nothing\.txt"):
        list_inputs([f"{url}/nothing.txt"], LoadOptions())


def listed_again(url: str, index: Path) -> list[str]:
    """Sources that an ingestion of a page would read now."""
    workflow = aaflow.Workflow()
    workflow.load(f"{url}/a.txt").transform().embed("hash", dimension=16).upsert(index, partitions=2)
    plan = aaflow.compile(workflow, ranks=1)
    sources: list[str] = plan.tables["listing"]["source"].to_pylist()
    aaflow.run(aaflow.place(plan), "local", run_folder=index.parent / "runs")
    return sources


@pytest.mark.serial
@pytest.mark.parametrize(("served", "again"), [(Handler, []), (Undated, ["a.txt"])], indirect=["served"])
def test_a_page_that_changed_is_read_again(served: tuple[Path, str], again: list[str], tmp_path: Path) -> None:
    folder, url = served
    assert listed_again(url, tmp_path / "index") == ["a.txt"]
    assert listed_again(url, tmp_path / "index") == again
    (folder / "a.txt").write_text("The ferry crosses at nine.")  # as long as before
    os.utime(folder / "a.txt", (1_700_000_000, 1_700_000_000))
    assert listed_again(url, tmp_path / "index") == ["a.txt"]
    assert ask_index(tmp_path / "index", ["ferry"], 5)["text"].to_pylist() == ["The ferry crosses at nine."]
