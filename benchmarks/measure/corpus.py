"""Corpora that are the same bytes on every machine and run."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np

_ONSETS = ["b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "v", "w", "st", "tr", "ch", "sh", "pl"]
_VOWELS = ["a", "e", "i", "o", "u", "ea", "ou", "io"]
_CODAS = ["", "", "n", "r", "s", "t", "l", "nd", "st", "ng"]
_FREQUENT = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
]
_WORDS = 20_000
_RECORDS_PER_FILE = 4000


def write_texts(folder: Path, size: int, seed: int = 1) -> int:
    """Write text files of 1 kB to 1 MB, ``size`` bytes together or a little more; gives the bytes written."""
    return _write(folder, size, _texts(seed, median=12_000, spread=1.2, shortest=1000, longest=1_000_000))


def write_records(folder: Path, size: int, seed: int = 2) -> int:
    """Write files of JSON lines, ``size`` bytes together or a little more; records have ``id``, ``title``, ``text``."""
    folder.mkdir(parents=True)
    written = 0
    texts = _texts(seed, median=800, spread=0.8, shortest=40, longest=20_000)
    number = 0
    while written < size:
        with (folder / f"{number // _RECORDS_PER_FILE:04}.jsonl").open("w", encoding="ascii") as file:
            for _ in range(_RECORDS_PER_FILE):
                text = next(texts)
                line = json.dumps({"id": f"r{number:07}", "title": text.partition(".")[0][:60], "text": text})
                written += file.write(line + "\n")
                number += 1
                if written >= size:
                    break
    return written


def write_passages(folder: Path, passages: int) -> int:
    """Write about so many passages of the documentation of Python's standard library, every n-th; gives the bytes."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "apps"))
    from stdlib_docs import render

    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        render(Path(name))
        paths = sorted(Path(name).glob("*.jsonl"))
        lines = [(path.name, line) for path in paths for line in path.open(encoding="utf-8")]
    step = max(1, len(lines) // passages)
    written = 0
    for name, line in lines[::step][:passages]:
        with (folder / name).open("a", encoding="utf-8") as file:
            written += file.write(line)
    return written


#: By the name of a corpus, what writes it into a new folder (given bytes, or passages) and what embeds it.
CORPORA: dict[str, tuple[Callable[[Path, int], int], str]] = {
    "texts": (write_texts, "hash"),
    "records": (write_records, "hash"),
    "minilm": (write_passages, "minilm"),
}


def words(size: int, seed: int) -> str:
    """About so many bytes of words of seven digits."""
    chance = Random(seed)
    return " ".join(f"{chance.randrange(10**7):07d}" for _ in range(size // 8))


def _write(folder: Path, size: int, texts: Iterator[str]) -> int:
    written = number = 0
    while written < size:
        inner = folder / f"{number // 100:03}"
        inner.mkdir(parents=True, exist_ok=True)
        written += (inner / f"{number:05}.txt").write_text(next(texts), encoding="ascii")
        number += 1
    return written


def _texts(seed: int, *, median: int, spread: float, shortest: int, longest: int) -> Iterator[str]:
    """Sentences and paragraphs of words by Zipf's law; lengths in bytes are log-normal."""
    random = np.random.Generator(np.random.PCG64(seed))
    words = np.array(_vocabulary(random), dtype=object)
    weights = 1.0 / (np.arange(len(words)) + 2.7)
    weights /= weights.sum()
    while True:
        length = int(np.clip(median * np.exp(spread * random.standard_normal()), shortest, longest))
        chosen = words[random.choice(len(words), size=length // 5 + 8, p=weights)]
        ends = random.random(len(chosen))
        chosen[ends < 0.07] += "."
        chosen[ends < 0.012] += "\n\n"
        yield " ".join(chosen.tolist())[:length] + "\n"


def _vocabulary(random: np.random.Generator) -> list[str]:
    known = dict.fromkeys(_FREQUENT)
    while len(known) < _WORDS:
        syllables = int(random.integers(1, 5))
        parts = [random.choice(part) for _ in range(syllables) for part in (_ONSETS, _VOWELS, _CODAS)]
        known["".join(parts)] = None
    return list(known)
