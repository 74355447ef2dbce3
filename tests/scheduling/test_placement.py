from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaflow.compiler.plan import Plan, Stage
from aaflow.errors import PlacementError
from aaflow.scheduling.placement import Placement, place
from aaflow.scheduling.site import AcceleratorKind, Node, Site


def site(nodes=1, cores=4, accelerators=0, oversubscribe=False):
    kind = (
        AcceleratorKind("cuda", tuple(map(str, range(accelerators))), "CUDA_VISIBLE_DEVICES") if accelerators else None
    )
    node = Node(tuple(range(cores)), 8 << 30, kind)
    return Site(
        name="test", description="", nodes=nodes, node=node, oversubscribe=oversubscribe, scheduler="local",
        launcher="mpiexec", launcher_options=(), communicator="mpi", pilot="local",
    )  # fmt: skip


def stage(name, ranks, cores=1, accelerated=False):
    return Stage(name, (), "cpu-partition", ranks, cores, accelerated, None, (0,) * 4, "mpi")


def plan(ranks, accelerated=False):
    return Plan("test", 4, (stage("s", ranks, accelerated=accelerated),), (), None, None)


@given(st.integers(1, 6), st.integers(1, 16), st.integers(1, 40))
def test_ranks_that_fit_get_cores_of_their_own_in_contiguous_blocks_of_nodes(nodes, cores, ranks):
    there = site(nodes, cores)
    if -(-ranks // nodes) > cores:
        with pytest.raises(PlacementError, match="cores"):
            place(plan(ranks), there)
        return
    slots = place(plan(ranks), there).slots["s"]
    pinned = [(slot.node, core) for slot in slots for core in slot.cores]
    assert len(slots) == ranks
    assert len(set(pinned)) == len(pinned)
    assert all(slot.cores and slot.node < nodes for slot in slots)
    assert [slot.node for slot in slots] == sorted(slot.node for slot in slots)


@given(st.integers(1, 4), st.lists(st.integers(1, 12), min_size=1, max_size=5), st.data())
def test_stages_that_stream_to_each_other_have_disjoint_slots(nodes, ranks, data):
    per_node = [-(-count // nodes) for count in ranks]
    cores = [data.draw(st.integers(1, 3)) for _ in ranks]
    stages = tuple(stage(f"s{i}", *of) for i, of in enumerate(zip(ranks, cores, strict=True)))
    there = site(nodes, sum(n * c for n, c in zip(per_node, cores, strict=True)))
    placement = place(Plan("test", 4, stages, (), None, None), there)
    pinned = [(slot.node, core) for group in placement.slots.values() for slot in group for core in slot.cores]
    assert len(set(pinned)) == len(pinned)
    assert not placement.oversubscribed


def test_stages_that_do_not_fit_together_are_refused_and_told_how_they_would():
    both = Plan("test", 4, (stage("a", 3), stage("b", 3)), (), None, None)
    with pytest.raises(PlacementError, match=r"'a' 3, 'b' 3.*6 a node.*4 cores.*at most 2 ranks of each"):
        place(both, site(cores=4))
    crowded = place(both, site(cores=2, oversubscribe=True))
    assert crowded.oversubscribed
    assert [slot.cores for slot in crowded.slots["b"]] == [(1,), (0,), (1,)]


def test_a_plan_that_does_not_fit_says_what_would():
    with pytest.raises(PlacementError, match=r"stage 's'.*9 ranks.*at most 8 ranks"):
        place(plan(9), site(nodes=2, cores=4))


def test_an_oversubscribed_site_shares_cores_and_says_so():
    placement = place(plan(8), site(cores=2, oversubscribe=True))
    assert placement.oversubscribed
    assert {slot.cores for slot in placement.slots["s"]} == {(0,), (1,)}


def test_each_rank_of_an_accelerated_stage_sees_accelerators_of_its_own():
    slots = place(plan(2, accelerated=True), site(cores=8, accelerators=4)).slots["s"]
    assert [slot.accelerators.ids for slot in slots] == [("0", "1"), ("2", "3")]
    assert slots[0].accelerators.variable == "CUDA_VISIBLE_DEVICES"


def test_more_ranks_than_accelerators_are_refused():
    with pytest.raises(PlacementError, match="accelerator"):
        place(plan(5, accelerated=True), site(cores=8, accelerators=4))


def test_a_placement_survives_its_folder(tmp_path):
    placement = place(plan(2, accelerated=True), site(cores=8, accelerators=4))
    placement.save(tmp_path)
    read = Placement.load(tmp_path)
    assert read == placement
    assert read.digest == placement.digest
