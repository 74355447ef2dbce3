from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aaflow
from aaflow import Pattern
from aaflow.compiler.compile import compile_workflow
from aaflow.compiler.partitioning import split_readers
from aaflow.compiler.plan import Plan, forward_pairs, schema_of
from aaflow.errors import DependencyError, EmbedderMismatch, PlacementError, WorkflowError
from aaflow.index import IndexSpec, Writer
from aaflow.operators.embedders import describe_embedder
from aaflow.operators.listing import split_sizes
from aaflow.scheduling import environment
from aaflow.scheduling.placement import place
from aaflow.scheduling.site import Environment, Site
from aaflow.workflow import Workflow

MakeSite = Callable[..., Site]
Ingestion = Callable[..., Workflow]


def keep(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


def edges(plan: Plan) -> list[tuple[str, str, str]]:
    return [(edge.source, edge.target, edge.primitive) for edge in plan.edges]


def make_index(path: Path, dimension: int = 16) -> None:
    fingerprint = describe_embedder("hash", dimension)[1]
    with Writer.acquire(path, IndexSpec(dimension, embedder=fingerprint, partitions=8), owner="test"):
        pass


def test_operators_that_one_slot_serves_share_a_stage(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    plan = compile_workflow(ingestion(docs), site=site(), ranks=2)
    assert [stage.name for stage in plan.stages] == ["load+transform+embed+upsert"]
    assert plan.stages[0].domain == "batch-worker"
    assert plan.stages[0].upstream is None
    assert {primitive for _, _, primitive in edges(plan)} == {"queue"}


def test_without_fusing_every_operator_is_a_stage_that_streams_to_the_next(
    docs: Path, site: MakeSite, ingestion: Ingestion
) -> None:
    plan = compile_workflow(ingestion(docs), site=site(), ranks=2, fuse=False)
    assert [(stage.name, stage.upstream, stage.domain) for stage in plan.stages] == [
        ("load", None, "cpu-partition"),
        ("transform", "load", "cpu-partition"),
        ("embed", "transform", "batch-worker"),
        ("upsert", "embed", "batch-write"),
    ]
    assert {primitive for _, _, primitive in edges(plan)} == {"stream"}
    assert {edge.routing for edge in plan.edges} == {"forward"}  # whole documents sit with their owner from the start
    assert all(plan.pairs_of(edge) == [(0, 0), (1, 1)] for edge in plan.edges)


def test_records_go_to_the_owner_before_they_have_vectors(records: Path, site: MakeSite, ingestion: Ingestion) -> None:
    plan = compile_workflow(ingestion(records), site=site(), ranks=2, fuse=False)
    assert [edge.routing for edge in plan.edges] == ["forward", "owner", "forward"]
    assert plan.pairs_of(plan.edges[1]) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_vectors_move_where_embed_has_other_ranks_than_upsert(
    records: Path, site: MakeSite, ingestion: Ingestion
) -> None:
    plan = compile_workflow(ingestion(records), site=site(), ranks={"embed": 3, "upsert": 2}, fuse=False)
    assert [edge.routing for edge in plan.edges] == ["forward", "forward", "owner"]


def test_buffers_shrink_where_a_rank_has_many_consumers(records: Path, site: MakeSite, ingestion: Ingestion) -> None:
    few, many = (compile_workflow(ingestion(records), site=site(), ranks=n, fuse=False).edges[1] for n in (2, 32))
    assert (few.bound, few.buffer_bytes) == (4, 8 << 20)
    assert many.bound * many.buffer_bytes * 32 <= 256 << 20


@given(st.integers(1, 40), st.integers(1, 40))
def test_forward_pairs_serve_everyone_and_form_no_cycle(producers: int, consumers: int) -> None:
    pairs = forward_pairs(producers, consumers)
    assert {producer for producer, _ in pairs} == set(range(producers))
    assert {consumer for _, consumer in pairs} == set(range(consumers))
    per_producer = Counter(producer for producer, _ in pairs)
    per_consumer = Counter(consumer for _, consumer in pairs)
    assert max(per_producer.values()) == 1 or max(per_consumer.values()) == 1
    assert max(per_producer.values()) - min(per_producer.values()) <= 1
    assert max(per_consumer.values()) - min(per_consumer.values()) <= 1


def test_two_readers_of_one_operator_end_its_stage(docs: Path, site: MakeSite, tmp_path: Path) -> None:
    workflow = Workflow()
    chunks = workflow.load(docs).transform()
    chunks.embed("hash").upsert(tmp_path / "index")
    chunks.apply(keep)
    plan = compile_workflow(workflow, site=site(), ranks=2)
    assert [(stage.name, stage.upstream) for stage in plan.stages] == [
        ("load+transform", None),
        ("embed+upsert", "load+transform"),
        ("keep", "load+transform"),
    ]


def test_an_accelerator_serves_only_the_model(docs: Path, site: MakeSite, tmp_path: Path) -> None:
    workflow = Workflow()
    workflow.load(docs).transform().embed("all-MiniLM-L6-v2").upsert(tmp_path / "index")
    plan = compile_workflow(workflow, site=site(accelerators=2), ranks=2)
    assert [(stage.name, stage.accelerated) for stage in plan.stages] == [
        ("load+transform", False),
        ("embed", True),
        ("upsert", False),
    ]
    fused = compile_workflow(workflow, site=site(), ranks=2)
    assert [stage.accelerated for stage in fused.stages] == [False]


def test_an_accelerator_that_is_not_there_is_refused(docs: Path, site: MakeSite, tmp_path: Path) -> None:
    workflow = Workflow()
    workflow.load(docs).transform().embed("all-MiniLM-L6-v2", device="accelerator", name="vectors").upsert(tmp_path)
    with pytest.raises(WorkflowError, match="'vectors' asks for an accelerator"):
        compile_workflow(workflow, site=site(), ranks=1)


def test_whole_documents_need_no_shuffle(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    plan = compile_workflow(ingestion(docs), site=site(), ranks=3)
    assert not any(operator.shuffle for operator in plan.stages[0].operators)
    assert all(edge.bytes == 0 for edge in plan.edges)


def test_records_of_a_file_are_shuffled_before_they_weigh_a_vector(
    records: Path, site: MakeSite, ingestion: Ingestion
) -> None:
    plan = compile_workflow(ingestion(records), site=site(), ranks=3)
    assert [operator.name for operator in plan.stages[0].operators if operator.shuffle] == ["embed"]
    assert ("transform", "embed", "mpi-shuffle") in edges(plan)
    streaming = compile_workflow(ingestion(records), site=site(), ranks=3, fuse=False)
    passing, streamed = (next(edge.bytes for edge in one.edges if edge.target == "embed") for one in (plan, streaming))
    assert passing == streamed > (records / "records.jsonl").stat().st_size


def test_one_rank_alone_exchanges_with_nobody(records: Path, site: MakeSite, ingestion: Ingestion) -> None:
    plan = compile_workflow(ingestion(records), site=site(), ranks=1)
    assert plan.stages[0].communicator == "serial"
    assert {primitive for _, _, primitive in edges(plan)} == {"queue"}
    assert all(edge.bytes == 0 for edge in plan.edges)


def test_a_shuffling_operator_of_the_user_gets_its_rows_by_partition(
    records: Path, site: MakeSite, tmp_path: Path
) -> None:
    workflow = Workflow()
    documents = workflow.load(records).apply(keep, pattern=Pattern.SHUFFLE_COMPUTE)
    documents.transform().embed("hash").upsert(tmp_path / "index")
    plan = compile_workflow(workflow, site=site(), ranks=2)
    assert [operator.name for operator in plan.stages[0].operators if operator.shuffle] == ["keep"]
    assert ("load", "keep", "mpi-shuffle") in edges(plan)


def test_input_is_balanced_over_ranks_by_size(tmp_path: Path, site: MakeSite, ingestion: Ingestion) -> None:
    folder = tmp_path / "sizes"
    folder.mkdir()
    for number in range(64):
        (folder / f"{number}.txt").write_text("x" * (1000 if number % 8 else 20_000))
    plan = compile_workflow(ingestion(folder), site=site(), ranks=4)
    listing = plan.tables["listing"]
    readers = split_readers(listing, plan.stages[0].owners, 4)
    sizes = split_sizes(listing)
    loads = [int(sizes[readers == rank].sum()) for rank in range(4)]
    weights = Counter[int]()
    for partition, size in zip(listing["partition"].to_pylist(), sizes.tolist(), strict=True):
        weights[partition] += size
    heaviest = max(weights.values())  # a partition is never cut
    assert sum(loads) == sizes.sum()
    assert max(loads) <= sizes.sum() / 4 + heaviest


def test_same_workflow_listing_and_site_give_the_same_bytes(
    records: Path, site: MakeSite, ingestion: Ingestion
) -> None:
    first, second = (compile_workflow(ingestion(records), site=site(), ranks=3) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert first.digest == second.digest


def test_a_changed_file_another_option_or_more_ranks_give_another_plan(
    records: Path, site: MakeSite, ingestion: Ingestion
) -> None:
    plan = compile_workflow(ingestion(records), site=site(), ranks=3)
    others = [
        compile_workflow(ingestion(records), site=site(), ranks=2),
        compile_workflow(ingestion(records, dimension=32), site=site(), ranks=3),
        compile_workflow(ingestion(records), site=site(), ranks=3, fuse=False),
    ]
    os.utime(records / "00.txt", ns=(1, 1))
    others.append(compile_workflow(ingestion(records), site=site(), ranks=3))
    assert len({plan.digest, *(other.digest for other in others)}) == 5


def test_the_work_is_the_same_on_other_ranks_and_in_other_stages(
    records: Path, site: MakeSite, ingestion: Ingestion
) -> None:
    plan = compile_workflow(ingestion(records), site=site(), ranks=3)
    assert compile_workflow(ingestion(records), site=site(), ranks=1).work_key == plan.work_key
    assert compile_workflow(ingestion(records), site=site(), ranks=3, fuse=False).work_key == plan.work_key
    assert compile_workflow(ingestion(records, dimension=32), site=site(), ranks=3).work_key != plan.work_key


def test_ranks_may_be_named_by_operator(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    plan = compile_workflow(ingestion(docs), site=site(cores=4), ranks={"embed": 3}, fuse=False)
    assert [stage.ranks for stage in plan.stages] == [1, 1, 3, 1]
    assert compile_workflow(ingestion(docs), site=site(cores=4), ranks={"embed": 3}).stages[0].ranks == 3
    with pytest.raises(PlacementError, match="load, transform, embed, upsert share a stage"):
        compile_workflow(ingestion(docs), site=site(), ranks={"embed": 3, "load": 2})
    with pytest.raises(PlacementError, match="embde"):
        compile_workflow(ingestion(docs), site=site(), ranks={"embde": 3})


def test_by_default_every_core_of_the_site_has_a_rank(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    assert compile_workflow(ingestion(docs), site=site(cores=3, nodes=2)).stages[0].ranks == 6
    streaming = compile_workflow(ingestion(docs), site=site(cores=10, nodes=2), fuse=False)
    assert [stage.ranks for stage in streaming.stages] == [4, 4, 4, 4]


def test_cores_that_are_left_go_to_those_who_embed(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    plan = compile_workflow(ingestion(docs), site=site(cores=12), ranks=2, fuse=False)
    assert [stage.cores for stage in plan.stages] == [1, 1, 3, 1]
    assert [stage.operators[0].workers for stage in plan.stages] == [1, 1, 3, 2]


@pytest.mark.parametrize("ranks", [0, -1])
def test_a_stage_has_at_least_one_rank(ranks: int, docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    with pytest.raises(PlacementError, match=r"load\+transform\+embed\+upsert.*at least 1"):
        compile_workflow(ingestion(docs), site=site(), ranks=ranks)


def test_a_plan_that_does_not_fit_is_refused_at_once(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    with pytest.raises(PlacementError, match=r"load\+transform\+embed\+upsert.*9 ranks.*at most 4"):
        aaflow.compile(ingestion(docs), site=site(cores=4), ranks=9)


def test_ranks_of_a_serial_site_can_not_talk(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    with pytest.raises(PlacementError, match="communicator is 'serial'"):
        compile_workflow(ingestion(docs), site=site(communicator="serial"), ranks=2)
    assert compile_workflow(ingestion(docs), site=site(communicator="serial"), ranks=1).stages[0].ranks == 1


def test_operators_of_two_environments_do_not_share_a_stage(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    own = {"cylon": Environment("/sw/cylon/bin/python", "cylon", ("batch-write",))}
    plan = compile_workflow(ingestion(docs), site=site(environments=own), ranks=2)
    assert [(stage.name, stage.environment, stage.communicator) for stage in plan.stages] == [
        ("load+transform+embed", None, "mpi"),
        ("upsert", "cylon", "cylon"),
    ]
    assert "collectives cylon, environment cylon" in plan.explain()
    alone = compile_workflow(ingestion(docs), site=site(environments=own), ranks=1)
    assert [(stage.environment, stage.communicator) for stage in alone.stages] == [
        (None, "serial"),
        ("cylon", "serial"),
    ]


def test_what_ranks_cannot_import_is_refused_when_compiling(
    docs: Path, site: MakeSite, ingestion: Ingestion, tmp_path: Path
) -> None:
    gone = {"own": Environment(str(tmp_path / "python"), "mpi", ("batch-write",))}
    with pytest.raises(DependencyError, match=r"stage 'upsert' .* \(environments\.own\): there is no interpreter"):
        aaflow.compile(ingestion(docs), site=site(environments=gone), ranks=2)
    if importlib.util.find_spec("pycylon") is None:
        with pytest.raises(DependencyError, match=r"communicator\): .*No module named 'pycylon'"):
            aaflow.compile(ingestion(docs), site=site(communicator="cylon"), ranks=2)
        assert aaflow.compile(ingestion(docs), site=site(communicator="cylon"), ranks=1), "one rank talks to nobody"


def test_compiling_needs_an_mpi_library_where_ranks_talk_to_each_other(
    docs: Path, site: MakeSite, ingestion: Ingestion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPI4PY_LIBMPI", "/nonexistent/libmpi.so")
    environment._failure.cache_clear()
    try:
        with pytest.raises(
            DependencyError, match=r"stage 'load.*' can't run .*communicator\): .*cannot load MPI library"
        ):
            aaflow.compile(ingestion(docs), site=site(), ranks=2)
        assert aaflow.compile(ingestion(docs), site=site(), ranks=1), "one rank talks to nobody"
        in_the_job = dataclasses.replace(site(), provider={"worker_init": "module load mpi"})
        assert aaflow.compile(ingestion(docs), site=in_the_job, ranks=2)
    finally:
        environment._failure.cache_clear()


def test_planned_operators_know_their_schemas_and_batches(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    operators = {
        one.name: one for one in compile_workflow(ingestion(docs), site=site(cores=4), ranks=2).stages[0].operators
    }
    assert operators["load"].input == ""
    assert schema_of(operators["transform"].input) == schema_of(operators["load"].output)
    assert schema_of(operators["upsert"].input) == schema_of(operators["embed"].output)
    assert operators["upsert"].output == ""
    assert operators["embed"].batch_rows == 2048
    assert operators["embed"].workers == 2  # two cores a rank


def test_a_workflow_without_an_index_has_partitions_of_its_own(records: Path, site: MakeSite) -> None:
    workflow = Workflow()
    workflow.load(records).transform().apply(keep, pattern=Pattern.SHUFFLE_COMPUTE)
    plan = compile_workflow(workflow, site=site(), ranks=3)
    assert plan.index is None
    assert plan.partitions == 64
    assert set(plan.stages[0].owners) == {0, 1, 2}


def test_a_retrieval_has_the_partitions_of_its_index_and_no_listing(site: MakeSite, tmp_path: Path) -> None:
    make_index(tmp_path / "index")
    plan = compile_workflow(Workflow.retrieval(tmp_path / "index", ["what?"], k=3), site=site(), ranks=2)
    assert plan.partitions == 8
    assert plan.listing is None
    assert [stage.name for stage in plan.stages] == ["queries+embed+retrieve"]
    assert plan.stages[0].domain == "vector-shard"
    assert [stage.domain for stage in place(plan, site()).plan.stages] == ["vector-shard"]


def test_questions_are_embedded_by_the_model_of_the_index(site: MakeSite, tmp_path: Path) -> None:
    with Writer.acquire(tmp_path / "old", IndexSpec(16, embedder={"model": "hash", "seed": 5}), owner="test"):
        pass
    workflow = Workflow()
    workflow.queries(["what?"]).embed("hash", dimension=16).retrieve(tmp_path / "old")
    with pytest.raises(EmbedderMismatch, match="embedder"):
        compile_workflow(workflow, site=site(), ranks=1)


def test_another_dimension_than_the_index_has_is_refused(
    docs: Path, site: MakeSite, ingestion: Ingestion, tmp_path: Path
) -> None:
    make_index(tmp_path / "index")
    with pytest.raises(EmbedderMismatch, match=r"dimension 16\).*dimension 32\)"):
        compile_workflow(ingestion(docs, dimension=32), site=site(), ranks=1)
    workflow = Workflow()
    with pytest.raises(WorkflowError, match="'retrieve' can't read the rows of 'embed': column 'vector'"):
        compile_workflow(
            workflow.queries(["what?"]).embed("hash", dimension=32).retrieve(tmp_path / "index").workflow,
            site=site(), ranks=1,
        )  # fmt: skip
    with pytest.raises(WorkflowError, match="'best': k is 0"):
        workflow.queries(["what?"], name="q").embed("hash", dimension=16, name="e").retrieve(
            tmp_path / "index", k=0, name="best"
        )
