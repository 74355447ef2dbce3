from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_a_query_gives_hits_with_score_source_text_ids_and_metadata(cli: Cli, made: dict[str, Any]) -> None:
    answer = cli("query", made["index"], "reverse a list", "-k", 2, "--json").json()
    assert len(answer["hits"]) == 2
    best = answer["hits"][0]
    assert best["text"] == "reverse a list"
    assert best["source"] == "records.jsonl"
    assert best["doc_id"] == "records.jsonl#b"
    assert best["metadata"]["year"] == 2002
    assert best["rank"] == 0
    assert best["score"] == pytest.approx(1, abs=1e-6)
    assert best["score"] >= answer["hits"][1]["score"]
    assert len(bytes.fromhex(best["chunk_id"])) == 16
    assert len(bytes.fromhex(best["content_hash"])) == 32
    assert (best["start"], best["end"]) == (0, len("reverse a list"))
    assert "vector" not in best


@pytest.mark.serial
@pytest.mark.parametrize(("ranks", "pilot"), [(1, "local"), (2, "local"), (2, "parsl")])
def test_ranks_of_any_pilot_give_the_hits_of_the_callers_process(
    ranks: int, pilot: str, cli: Cli, made: dict[str, Any], tmp_path: Path
) -> None:
    alone = cli("query", made["index"], "call time to wait", "-k", 3, "--json").json()
    words = ["--ranks", ranks, "--pilot", pilot, "--run-folder", tmp_path]
    assert cli("query", made["index"], "call time to wait", "-k", 3, *words, "--json").json() == alone


def test_a_query_for_a_person_shows_score_source_and_text(cli: Cli, made: dict[str, Any]) -> None:
    shown = cli("query", made["index"], "wait for some seconds", "-k", 1)
    assert shown.code == 0
    assert "sleep.md" in shown.out
    assert "[really]" in shown.out  # text is never read as markup


def test_ask_quotes_the_best_passages_with_their_sources(cli: Cli, made: dict[str, Any]) -> None:
    question = "parse an ISO date"
    answer = cli("ask", made["index"], question, "-k", 2, "--json").json()
    assert answer["question"] == question
    assert "[1] To parse an ISO date call date.fromisoformat with a string." in answer["answer"]
    assert answer["sources"][0]["source"] == "dates.txt"
    assert [source["number"] for source in answer["sources"]] == [1, 2]
    shown = cli("ask", made["index"], question, "-k", 1)
    assert "date.fromisoformat" in shown.out
    assert "[1] dates.txt" in shown.out


@pytest.mark.parametrize("command", ["query", "ask"])
def test_a_missing_index_is_told_by_its_path(command: str, cli: Cli, tmp_path: Path) -> None:
    ended = cli(command, tmp_path / "none", "what?")
    assert ended.code == 3
    assert str(tmp_path / "none") in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-k", "0"], 2, "-k"),
        (["--backend", "guess"], 3, "unknown search backend 'guess'"),
        (["--pilot", "foo"], 2, "there is no pilot 'foo'"),
        (["--site", "foo"], 2, "there is no site 'foo'"),
    ],
)
def test_a_query_that_can_not_be_answered_says_why(
    words: list[str], code: int, said: str, cli: Cli, made: dict[str, Any]
) -> None:
    ended = cli("query", made["index"], "what?", *words)
    assert ended.code == code, ended.err
    assert said in ended.err
    assert "Traceback" not in ended.err
