"""The virtual cluster of a test session; where there is none, a word on how to get it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from virtualcluster import VirtualCluster, forbidden, lacking


@pytest.fixture(scope="session")
def possible() -> None:
    """CI has to install what is missing; elsewhere these tests are left out where a cluster can't be."""
    why = lacking()
    if why is not None and os.environ.get("CI"):
        pytest.fail(why)
    why = why or forbidden()
    if why is not None:
        pytest.skip(why)


@pytest.fixture(scope="module")
def shared_cluster(possible: None) -> Iterator[VirtualCluster]:
    with VirtualCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: VirtualCluster) -> Iterator[VirtualCluster]:
    """A cluster whose nodes are free, and on which nothing of the test goes on afterwards."""
    shared_cluster.wait_for_idle()
    yield shared_cluster
    shared_cluster.run(["scancel", "--user=root"])
