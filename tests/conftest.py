"""What every test shares: a home folder of its own, so that a user's sites and runs neither matter nor change."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A machine that other work shares makes any example slow now and then; pytest-timeout bounds a whole test.
settings.register_profile("aaflow", deadline=None)
settings.load_profile("aaflow")


# A shell starts background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C need it as usual.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs and sites of the tests live in an empty home; models come from installed packages only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@contextlib.contextmanager
def _turn(factory: pytest.TempPathFactory) -> Iterator[None]:
    """A session of RADICAL-Pilot is some forty processes: test processes beside each other have one at a time."""
    base = factory.getbasetemp()
    with (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base).joinpath("radical.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def radical_turn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nobody else has a session of RADICAL-Pilot during this test."""
    with _turn(tmp_path_factory):
        yield


@pytest.fixture(scope="module")
def radical_module_turn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nobody else has a session of RADICAL-Pilot during this module."""
    with _turn(tmp_path_factory):
        yield
