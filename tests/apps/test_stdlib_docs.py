from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

import stdlib_docs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stdlib")
    assert stdlib_docs.render(folder) == sum(len(path.read_text().splitlines()) for path in folder.iterdir())
    return folder


@pytest.fixture(scope="module")
def texts(corpus: Path) -> dict[str, str]:
    records = [json.loads(line) for path in corpus.iterdir() for line in path.open()]
    assert all(record.keys() == {"id", "title", "text", "kind", "module"} for record in records)
    found = {record["id"]: record["text"] for record in records}
    assert len(found) == len(records), "an id occurs twice"
    return found


def test_the_corpus_has_about_ten_thousand_passages(texts: dict[str, str]) -> None:
    assert 9_000 < len(texts) < 12_000


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("json", "module json"),
        ("argparse.ArgumentParser", "class argparse.ArgumentParser("),
        ("shutil.copytree", "function shutil.copytree(src, dst"),
        ("datetime.date.fromisoformat", "method datetime.date.fromisoformat"),
        ("pathlib.PurePath.suffix", "property pathlib.PurePath.suffix"),
    ],
)
def test_modules_classes_functions_methods_and_properties_are_passages(
    texts: dict[str, str], name: str, heading: str
) -> None:
    assert texts[name].startswith(heading)


def test_a_class_comes_without_the_texts_of_its_methods(texts: dict[str, str]) -> None:
    assert "Open the file in text mode" in texts["pathlib.Path.read_text"]
    assert "Open the file in text mode" not in texts["pathlib.Path"]


def test_what_several_modules_export_is_one_passage(texts: dict[str, str]) -> None:
    assert "json.JSONDecoder" in texts
    assert "json.decoder.JSONDecoder" not in texts


def test_no_signature_tells_of_this_machine_or_run(texts: dict[str, str]) -> None:
    places = [re.escape(str(Path(place))) for place in (sys.executable, Path.home(), os.getcwd())]
    private = re.compile("|".join([r"\bat 0x[0-9a-f]{6,}", *places]))
    assert [name for name, text in texts.items() if private.search(text.splitlines()[0])] == []


def test_rendering_again_elsewhere_gives_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    stdlib_docs.render(Path("again"))
    first = {path.name: path.read_bytes() for path in corpus.iterdir()}
    assert {path.name: path.read_bytes() for path in Path("again").iterdir()} == first
    assert capfd.readouterr() == ("", "")
    assert os.listdir(tmp_path) == ["again"]


def test_known_items_are_functions_whose_summary_is_theirs_alone(corpus: Path, texts: dict[str, str]) -> None:
    items = stdlib_docs.known_items(corpus)
    assert len(items) >= 300
    assert all(texts[name].startswith("function ") for _, name in items)
    for summary, name in items[::20]:
        assert [other for other, text in texts.items() if summary in map(str.strip, text.splitlines())] == [name]


def test_a_python_that_cannot_render_is_an_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no standard library here >&2; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RuntimeError, match="no standard library here"):
        stdlib_docs.render(tmp_path / "corpus")
