"""Any process of a streaming run may die at any moment; ten draws of what ``campaign.py`` does at length."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kills import Kill, Kills

pytestmark = [pytest.mark.serial, pytest.mark.timeout(300)]

SEED = 80  # whose ten moments and victims are far apart


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kills]:
    made = Kills(tmp_path_factory.mktemp("kills"), SEED)
    yield made
    made.close()


@pytest.mark.parametrize("number", range(10), ids=lambda number: f"{number}-{Kill.drawn(SEED, number).pilot}")
def test_nothing_hangs_and_nothing_is_left_or_lost(kills: Kills, number: int) -> None:
    outcome = kills.do(number)
    assert outcome.held, outcome
