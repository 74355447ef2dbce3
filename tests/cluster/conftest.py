"""The virtual cluster of a test session; where there is none, a word on how to get it. A corpus to ingest on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clusteringestion import ALL, ClusterIngestion, on_cluster
from ingestions import OLD, Ingestion, copy_of, write_documents
from virtualcluster import VirtualCluster, unavailable


@pytest.fixture(scope="session")
def possible() -> None:
    """Elsewhere than in CI these tests are left out where a cluster can't be."""
    if (found := unavailable()) is not None:
        why, fails = found
        if fails:
            pytest.fail(why)
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


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingestion]:
    """An index at generation 1, made on this machine, whose corpus has since grown."""
    folder = tmp_path_factory.mktemp("before")
    ingestion = Ingestion(folder, folder / "docs")
    write_documents(ingestion.docs, range(OLD), edition=1)
    ingestion.complete()
    write_documents(ingestion.docs, range(OLD // 2, ALL), edition=2)
    yield ingestion
    ingestion.end()


@pytest.fixture(scope="module")
def undisturbed(before: Ingestion, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the index that this machine makes of the corpus."""
    ingestion = copy_of(before, tmp_path_factory.mktemp("undisturbed"))
    ingestion.complete()
    _, digest = ingestion.content()
    ingestion.end()
    return digest


@pytest.fixture
def ingestion(before: Ingestion, cluster: VirtualCluster, tmp_path: Path) -> Iterator[ClusterIngestion]:
    made = on_cluster(before, tmp_path, cluster)
    yield made
    made.end()
