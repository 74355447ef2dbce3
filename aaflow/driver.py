"""The driver of a run: compile, place, start the task groups through a pilot, publish what they committed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from aaflow.compiler.compile import compile_workflow
from aaflow.compiler.plan import Plan
from aaflow.dataplane.edge import write_edge_keys
from aaflow.errors import AaflowError, InputError, JobEnded, PilotError, RunError, StageError
from aaflow.index import IndexSpec, Publication, Writer, open_index
from aaflow.launchorder import write_launch_orders
from aaflow.pilot import Pilot, find_pilot
from aaflow.runtime import processes, records
from aaflow.runtime.ending import blames_neighbour, first_loss
from aaflow.runtime.lease import RunLease
from aaflow.runtime.leftovers import find_leftovers
from aaflow.runtime.leftovers import remove as remove_leftover
from aaflow.runtime.progress import committed_units, expected_units, require_progress, require_units
from aaflow.runtime.runfolder import RunFolder
from aaflow.runtime.runs import cancelled, tell_end
from aaflow.runtime.trace import logical_digest, read_trace
from aaflow.scheduling.environment import require_backends
from aaflow.scheduling.interface import interface_address
from aaflow.scheduling.placement import Placement
from aaflow.scheduling.placement import place as place_plan
from aaflow.scheduling.site import Site
from aaflow.scheduling.sitefile import load_site
from aaflow.schema import NOTICES
from aaflow.workflow import Workflow

#: Seconds between two looks at progress and at the engine's health.
LOOK_SECONDS = 0.5
#: Seconds that an engine may take to deliver the result of a group that has ended.
DELIVERY_SECONDS = 15.0
#: Seconds within which a keeper tells the end of a group whose task the engine lost.
KEEPER_SECONDS = 3.0

Progress = Callable[[RunFolder], None]


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        folder: its run folder.
        placement: what ran where.
        seconds: from the call to the end.
        generation: generation of the index afterwards; None where the run writes no index.
        notices: documents that were skipped and metadata that did not fit; rows of :data:`aaflow.schema.NOTICES`.
        timings: seconds of the phases of every stage: ``start`` (until its first rank was ready), ``work``.
        published: what became of the rows that the run gave its index, with the bytes that took; None where the run
            writes no index.
    """

    folder: Path
    placement: Placement
    seconds: float
    generation: int | None
    notices: pa.Table
    timings: Mapping[str, Mapping[str, float]]
    published: Publication | None = None

    def output(self) -> pa.Table:
        """The rows that the last operators of the workflow gave, by rank.

        Raises:
            RunError: they gave none: the workflow ends in an index.
        """
        paths = sorted((self.folder / "output").glob("*.arrow"), key=lambda path: int(path.stem.rpartition(".")[2]))
        tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
        if not tables:
            raise RunError(f"run {self.folder} has no output: its workflow ends in an index")
        return pa.concat_tables(tables)

    def trace(self) -> pa.Table:
        """Rows of :data:`aaflow.runtime.trace.TRACE`, all ranks."""
        return read_trace(self.folder / "trace")

    @property
    def logical_digest(self) -> str:
        """SHA-256 of what was done, times left out; equal for runs of one plan."""
        return logical_digest(self.trace())


def compile(
    workflow: Workflow,
    *,
    site: str | Site | None = None,
    ranks: int | Mapping[str, int] | None = None,
    fuse: bool = True,
) -> Plan:
    """Compile a workflow for a site; see :func:`aaflow.compiler.compile_workflow`, which says what it raises.

    Raises:
        PlacementError: the plan does not fit the site.
        DependencyError: the interpreter of a stage can't import what its ranks need.
    """
    there = _site(site)
    plan = compile_workflow(workflow, site=there, ranks=ranks, fuse=fuse)
    require_backends(plan, there)
    return replace(plan, slots=place_plan(plan, there).slots)


def place(plan: Plan, site: str | Site | None = None) -> Placement:
    """Put every rank of a plan on its slot; see :func:`aaflow.scheduling.placement.place` for what it raises."""
    return place_plan(plan, _site(site))


def run(
    placement: Placement,
    pilot: str | Pilot | None = None,
    *,
    run_folder: str | Path | None = None,
    progress: Progress | None = None,
    until_done: bool = False,
) -> RunResult:
    """Run a placement through a pilot and publish what it wrote.

    Args:
        placement: what runs where.
        pilot: a pilot or its name; by default that of the site.
        run_folder: parent of the run folder; by default that of the site.
        progress: called about twice a second with the run folder.
        until_done: where the batch job reached its walltime, go on in a new run with a new job, as long as each job
            commits something new.

    Raises:
        InputError: there is no pilot of this name; or ``until_done`` goes with neither this pilot, which is used for
            one run, nor a workflow without an index.
        StageError: a task group failed; the index stays at its last generation, and a rerun goes on.
        PilotError: the pilot or its engine can't be used, or the engine died.
        JobEnded: its batch job ended before the run did.
        RunCancelled: a person cancelled it.
        IndexLocked: another run writes the index.
    """
    engine = find_pilot(pilot or placement.site.pilot)() if pilot is None or isinstance(pilot, str) else pilot
    if until_done:
        require_units(placement.plan)
        if engine is pilot:
            raise InputError("until_done needs the name of a pilot: each job has a new one")
    folder = prepare(placement, run_folder)
    while True:
        before = committed_units(placement.plan)
        try:
            with told_end(folder):
                return carry_out(placement, engine, folder, progress)
        except JobEnded as error:
            if not (until_done and error.walltime):
                raise
            require_progress(placement.plan, before, str(error))
            engine = find_pilot(engine.name)()
            folder = prepare(placement, run_folder, before=folder)


def prepare(
    placement: Placement, run_folder: str | Path | None = None, *, before: RunFolder | None = None
) -> RunFolder:
    """Make the run folder of a placement, with all that its driver and its ranks need.

    Args:
        placement: what will run where.
        run_folder: parent of the run folder; by default that of the site.
        before: the run that this one goes on with.
    """
    runs = Path(run_folder or placement.site.run_folder).expanduser().absolute()
    folder = RunFolder.create(runs, placement.plan.digest)
    records.note_driver_process(str(folder.path), processes.identity())
    placement.save(folder.path)
    write_launch_orders(placement, folder.path)
    if len(placement.plan.stages) > 1:
        write_edge_keys(folder.path)
    if before is not None:
        folder.write_json("before.json", {"run": before.path.name})
        before.write_json("next.json", {"run": folder.path.name})
    return folder


@contextlib.contextmanager
def told_end(folder: RunFolder) -> Iterator[None]:
    """Write into the run folder how the run ended: for ``aaflow status`` and for the job that goes on."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # of a full disk, say, which is what the run failed of
            tell_end(str(folder.path), error)
        raise
    tell_end(str(folder.path), None)


def carry_out(placement: Placement, engine: Pilot, folder: RunFolder, progress: Progress | None = None) -> RunResult:
    """Run what :func:`prepare` made ready, through a pilot; see :func:`run` for what it raises."""
    began = time.monotonic()
    for leftover in find_leftovers(str(folder.path.parent)):
        remove_leftover(leftover)
    index = placement.plan.index
    if index is None:
        folder.write_json("run.json", {"epoch": None})
        _run_groups(placement, engine, folder, progress)
        published, notices = None, placement.plan.tables.get("notices", _no_notices())
    else:
        spec = IndexSpec.from_json(index["spec"])
        with Writer.acquire(Path(index["path"]), spec, owner=str(folder.path)) as writer:
            folder.write_json("run.json", {"epoch": writer.epoch})
            if _has_work(placement.plan):
                _run_groups(placement, engine, folder, progress)
            published, notices = _publish(writer, placement.plan)
    generation = None if published is None else published.manifest.generation
    timings = _timings(folder, placement.plan)
    result = RunResult(folder.path, placement, time.monotonic() - began, generation, notices, timings, published)
    folder.write_json("report.json", _report(result))
    return result


def _site(site: str | Site | None) -> Site:
    return site if isinstance(site, Site) else load_site(site)


def _no_notices() -> pa.Table:
    return NOTICES.empty_table()


def _has_work(plan: Plan) -> bool:
    return plan.listing is None or plan.listing.splits > 0


def _run_groups(placement: Placement, pilot: Pilot, folder: RunFolder, progress: Progress | None) -> None:
    with RunLease(str(folder.path), interface_address(placement.site.interface)) as lease:
        try:
            pilot.start(placement, lease)
            told = {stage.name: lease.watch(stage.name) for stage in placement.plan.stages}
            tasks = {name: pilot.submit(name, str(folder.path)) for name in told}
            try:
                _wait(tasks, told, pilot, folder, progress)
            except StageError as error:
                _blame_job(pilot, list(told), folder)
                raise _cause(error, [*tasks.items(), *told.items()], folder) from None
        except BaseException as error:
            lease.end(str(error) or type(error).__name__)
            raise
        finally:
            pilot.close()


def _wait(
    tasks: Mapping[str, Future[str]],
    told: Mapping[str, Future[Any]],
    pilot: Pilot,
    folder: RunFolder,
    progress: Progress | None,
) -> None:
    """Wait for all tasks, for the first failure that the engine or a keeper tells, or for the engine's death."""
    delivery: dict[str, float] = {}
    waiting = set(tasks)
    said = ""
    while waiting:
        open_futures = [tasks[name] for name in waiting] + [told[name] for name in waiting if not told[name].done()]
        wait(open_futures, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
        if (unwanted := cancelled(folder.path)) is not None:
            raise unwanted
        state = pilot.status()
        if state != said:
            folder.write_json("status.json", {"pilot": state})
            said = state
        if progress is not None:
            progress(folder)
        for name in [name for name in tasks if name in waiting]:
            if tasks[name].done():
                _take(name, tasks[name], told[name], pilot, folder)
                waiting.discard(name)
            elif told[name].done():
                told[name].result()
                if time.monotonic() - delivery.setdefault(name, time.monotonic()) > DELIVERY_SECONDS:
                    raise PilotError(
                        f"stage {name!r} ended, but pilot {pilot.name!r} never delivered its result; "
                        f"run folder: {folder.path}"
                    )
        if waiting:
            _check(pilot, [name for name in tasks if name in waiting], folder)


def _cause(error: StageError, ends: Sequence[tuple[str, Future[Any]]], folder: RunFolder) -> StageError:
    """The failure that a group's own followed from, where it failed because a neighbour did: who died tells later.

    Args:
        error: of the group.
        ends: what the engine and the keepers tell of all stages.
        folder: of the run.
    """
    if not blames_neighbour(str(folder.path), error.stage):
        return error
    deadline = time.monotonic() + KEEPER_SECONDS
    others = [future for stage, future in ends if stage != error.stage]
    while others and time.monotonic() < deadline:
        wait(others, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
        for future in [future for future in others if future.done()]:
            others.remove(future)
            found = future.exception()
            if isinstance(found, StageError) and not blames_neighbour(str(folder.path), found.stage):
                return found
    return first_loss(str(folder.path)) or error


def _take(stage: str, task: Future[str], told: Future[Any], pilot: Pilot, folder: RunFolder) -> None:
    """Raise what a stage's task failed with; where only the engine has a word for it, the keeper's says more."""
    error = task.exception()
    if error is None:
        return
    if isinstance(error, AaflowError):
        raise error
    _check(pilot, [stage], folder, anew=True)
    wait([told], timeout=KEEPER_SECONDS)
    if told.done():
        told.result()
    why = " ".join(str(error).split())
    raise PilotError(
        f"stage {stage!r} failed in pilot {pilot.name!r}: {type(error).__name__}: {why}; run folder: {folder.path}"
    ) from error


def _blame_job(pilot: Pilot, waiting: Sequence[str], folder: RunFolder) -> None:
    """Raise where a group failed because its batch job ended; whatever else befell the engine, the group tells."""
    try:
        _check(pilot, waiting, folder, anew=True)
    except JobEnded:
        raise
    except PilotError:
        pass


def _check(pilot: Pilot, waiting: Sequence[str], folder: RunFolder, *, anew: bool = False) -> None:
    """Raise where the engine died, naming the stages that it took along."""
    stages = ", ".join(repr(name) for name in waiting)
    try:
        pilot.check(anew=anew)
    except JobEnded as error:
        what = f"{error} before stage {stages} was done; what was committed counts, and a rerun goes on from it; "
        raise JobEnded(f"{what}run folder: {folder.path}", job=error.job, walltime=error.walltime) from error
    except PilotError as error:
        raise PilotError(f"{error} before stage {stages} was done; run folder: {folder.path}") from error


def _publish(writer: Writer, plan: Plan) -> tuple[Publication, pa.Table]:
    """Make what the ranks committed the next generation; also give what this input's documents met."""
    published = writer.publish(
        plan.work_key,
        sources=plan.tables["sources"],
        pruned=plan.tables["pruned"],
        again=plan.tables["again"]["source"].combine_chunks(),
        units=expected_units(plan),
    )
    with open_index(writer.path) as index:
        sources = index.sources()
        mine = sources.filter(pc.is_in(sources["root"], plan.tables["roots"]["root"].combine_chunks()))["source"]
        remembered = index.notices()
        remembered = remembered.filter(pc.is_in(remembered["source"], mine.combine_chunks()))
    said = pa.concat_tables([plan.tables["notices"], published.notices, remembered])
    said = said.group_by(said.column_names).aggregate([])
    return published, said.sort_by([(name, "ascending") for name in NOTICES.names])


def _timings(folder: RunFolder, plan: Plan) -> dict[str, dict[str, float]]:
    timings = {}
    for stage in plan.stages:
        ranks = [folder.read_json(f"results/{stage.name}.{rank}.json") for rank in range(stage.ranks)]
        done = [rank for rank in ranks if rank is not None]
        if done:
            ready = min(rank["ready"] for rank in done)
            timings[stage.name] = {
                "began": min(rank["began"] for rank in done),
                "ready": ready,
                "work": max(rank["ended"] for rank in done) - ready,
            }
    return timings


def _report(result: RunResult) -> dict[str, Any]:
    published = result.published
    index = None if published is None else {
        "added": published.added, "removed": published.removed,
        "data_bytes": published.data, "written_bytes": published.written,
    }  # fmt: skip
    return {
        "plan": result.placement.plan.digest,
        "placement": result.placement.digest,
        "seconds": result.seconds,
        "generation": result.generation,
        "notices": result.notices.num_rows,
        "index": index,
        "timings": {name: dict(timing) for name, timing in result.timings.items()},
        "logical_digest": result.logical_digest,
    }
