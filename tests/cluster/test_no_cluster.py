"""Where there can be no virtual cluster its tests are left out, but not in CI, which would be green without them."""

from __future__ import annotations

import os

import pytest
import virtualcluster


@pytest.mark.parametrize(
    ("missing", "denied", "user", "fails_in_ci"),
    [
        ("needs slurmd", None, 0, True),
        ("needs slurmd", "takes root", 1000, True),
        (None, "a container may not", 0, True),
        (None, "takes root", 1000, False),
    ],
)
def test_ci_leaves_out_only_what_it_runs_again_as_root(
    monkeypatch: pytest.MonkeyPatch, missing: str | None, denied: str | None, user: int, fails_in_ci: bool
) -> None:
    monkeypatch.setattr(virtualcluster, "lacking", lambda: missing)
    monkeypatch.setattr(virtualcluster, "forbidden", lambda: denied)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.delenv("CI", raising=False)
    assert virtualcluster.unavailable() == (missing or denied, False)
    monkeypatch.setenv("CI", "true")
    assert virtualcluster.unavailable() == (missing or denied, fails_in_ci)


def test_nothing_is_left_out_where_there_can_be_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtualcluster, "lacking", lambda: None)
    monkeypatch.setattr(virtualcluster, "forbidden", lambda: None)
    assert virtualcluster.unavailable() is None
