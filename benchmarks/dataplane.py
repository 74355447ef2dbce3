"""The data plane against real peers: edges in a node and between nodes, a shuffle between ranks, stages that stream.

    python benchmarks/dataplane.py [--quick] [--case NAME …] [--rounds N] [--json FILE] [--plot FILE]

edge: one producer and one consumer, a process and a core each; batches of rows with an id, a text of about 800 bytes
and a vector of 384 floats; the consumer reads every byte where it lies. aaflow's edge in shared memory, beside: the
machine's own **memcpy** (the same buffers copied once into shared memory used before, and read: no Arrow), **iceoryx2**
with Arrow streams, a **fresh file** in memory for every batch, **pickle 5 out of band** over a Unix socket into buffers
used again, and plain **pickle** over one.
computed: the same, but every producer also computes the vectors of every batch, by one kernel: aaflow's into memory of
the edge, as ``embed`` does, all others into memory of their own that they use again, to send them from there.
network: the same over the loopback interface: aaflow's edge between nodes beside raw **ZeroMQ** that sends the bare
buffers as frames, both without and with CURVE.
shuffle: a table in the memory of 2 and of 4 ranks, every row to a rank by chance: the communicator ``mpi`` beside
mpi4py's **pickle**-based ``alltoall`` (also with pickle 5 out of band), **Dask**'s P2P shuffle, **Ray** (actors that
split and join tables in its object store), and ``cylon``. Ranks of a job move it three times; the figure is of the
second and the third, when memory has been used before. The first stands in the JSON.
ingestion: ``load → transform → embed → upsert`` as one stage (**fused**) and as four that stream to each other
(**unfused**), every stage with as many ranks as cores, all on the same cores: the main job (``minilm``, passages of
Python's documentation), and texts and records with the hash embedder, which costs next to nothing, so that what it is
to be unfused shows at its worst. The rate is of the steady state: from when every rank is set up until the last one's
end. Both have to make the same index.

What is measured takes turns in every round, in processes that are fresh, and what arrives is compared with what was
sent. Ratios are taken inside a round. A round in which other processes used more than a tenth of the cores does not
count and is run again, up to twice the rounds asked for (not with --quick); if too few are calm, the calmest count, and
the table says so. (While Dask and Ray run nobody looks: their own daemons can't be told from others.) Peers that are
not installed (``pip install 'aaflow[bench]'``; pycylon is not on PyPI) or fail are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure.corpus import CORPORA
from measure.figures import Figure, figure, ratios
from measure.machine import watched
from measure.pipeline import Work, run_pipeline
from measure.processes import flow, shuffle
from rich.console import Console
from rich.table import Table

from aaflow.scheduling.sitefile import load_site

#: Others may use so much of the cores in a round that counts.
CALM = 0.10
#: What a peer needs beside aaflow, by the name of a module.
NEEDS = {"iceoryx2": "iceoryx2", "dask": "distributed", "ray": "ray", "cylon": "pycylon"}
CLUSTERS = ("dask", "ray")
CASES = ("edge", "computed", "network", "shuffle", "ingestion")

#: Rows a batch, ranks, a corpus.
Column = int | str
#: What one measurement gave: ``rate`` and whatever else stands in the JSON.
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """The rate of ``ours`` is to be ``least`` times that of ``peer``, in columns from ``start`` on."""

    ours: str
    peer: str
    least: float | None = None
    start: int = 0


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        names: what takes turns.
        columns: sizes it is measured at.
        unit: of a column.
        rate: the unit of ``rate``.
        rounds: that count.
        targets: ratios to show.
        once: measure one name, at all columns that it is measured at.
    """

    names: tuple[str, ...]
    columns: tuple[Column, ...]
    unit: str
    rate: str
    rounds: int
    targets: tuple[Target, ...]
    once: Callable[[str], Mapping[Any, Found]]


@dataclass(frozen=True)
class Round:
    """All names once, and what others used of the cores meanwhile, at most."""

    found: Mapping[str, Mapping[Column, Found]]
    others: float


def cases(quick: bool, scratch: Path) -> dict[str, Case]:
    """All cases; ``scratch`` is a folder for corpora and indexes."""
    edge = (1024, 16384) if quick else (1024, 4096, 16384, 65536)
    network = (16384,) if quick else (1024, 16384, 65536)
    size = 128_000_000 if quick else 2_000_000_000
    cores = sorted(os.sched_getaffinity(0))
    how: dict[str, Any] = {"seconds": 0.1, "least": 6, "pool": 16384} if quick else {"seconds": 1.0, "least": 12}
    how["cores"] = (cores[0], cores[1 % len(cores)])
    against = (("memcpy", 0.7, 16384), ("iceoryx2", None, 0), ("fresh file", 4, 0), ("pickle 5 out of band", 2, 0))
    peers = (*against, ("pickle", 10, 0))
    few = (2,) if quick else (2, 4)

    def one_way(ours: str, *, computed: bool) -> Case:
        names = ("memcpy", ours, "iceoryx2", "fresh file", "pickle 5 out of band", "pickle")
        targets = tuple(Target(ours, *each) for each in peers)
        once = functools.partial(flow, sizes=edge, computed=computed, **how)
        return Case(names, edge, "rows a batch", "GB/s", 2 if quick else 5, targets, once)

    return {
        "edge": one_way("edge", computed=False),
        "computed": one_way("edge, in place", computed=True),
        "network": Case(
            ("edge, TCP", "ZeroMQ", "edge, TCP, CURVE", "ZeroMQ, CURVE"),
            network,
            "rows a batch",
            "GB/s",
            1 if quick else 5,
            (Target("edge, TCP", "ZeroMQ"), Target("edge, TCP, CURVE", "ZeroMQ, CURVE")),
            lambda name: flow(name, network, **how),
        ),
        "shuffle": Case(
            ("mpi", "cylon", "ray", "dask", "pickle 5 out of band", "pickle"),
            (2, 4),
            "ranks",
            "GB/s",
            1 if quick else 3,
            (Target("mpi", "pickle", 8), Target("mpi", "cylon", 1), *(Target("mpi", each) for each in ("ray", "dask"))),
            lambda name: {ranks: shuffle(name, ranks, size) for ranks in (few if name in CLUSTERS else (2, 4))},
        ),
        "ingestion": Case(
            ("fused", "unfused"),
            tuple(CORPORA),
            "",
            "1000 chunks/s",
            1 if quick else 3,
            (Target("unfused", "fused", 1 / 1.2),),
            Ingestion(scratch, *((16_000_000, 160) if quick else (256_000_000, 1000))),
        ),
    }


class Ingestion:
    """Ingestions of all corpora, which are made when they are first asked for.

    Args:
        scratch: folder for corpora, indexes and run folders.
        size: bytes of a corpus for the hash embedder.
        passages: of that for the model.
    """

    def __init__(self, scratch: Path, size: int, passages: int) -> None:
        self._scratch = scratch
        self._size = size
        self._passages = passages
        self._works: dict[str, Work] = {}
        self._digests: dict[str, str] = {}

    def __call__(self, name: str) -> dict[str, Found]:
        """``fused`` or ``unfused``: every corpus."""
        if not self._works:
            for corpus, (write, model) in CORPORA.items():
                write(self._scratch / corpus, self._size if model == "hash" else self._passages)
                self._works[corpus] = Work(self._scratch / corpus, model, load_site("local"), self._scratch)
                for fuse in (True, False):  # compiles kernels where no run has before
                    run_pipeline(self._works[corpus], fuse=fuse)
        found: dict[str, Found] = {}
        for corpus, work in self._works.items():
            run = run_pipeline(work, fuse=name == "fused")
            if self._digests.setdefault(corpus, run.digest) != run.digest:
                sys.exit(f"{corpus}: fused and unfused runs made different indexes: do not trust these figures")
            found[corpus] = {
                "rate": run.chunks / run.steady / 1000,
                "seconds": run.steady,
                "startup": run.startup,
                "cpu": run.cpu,
                "chunks": run.chunks,
            }
        return found


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description="The data plane against real peers.")
    parser.add_argument(
        "--quick", action="store_true", help="small tables, few rounds, no ingestion unless it is named: a minute"
    )
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated")
    parser.add_argument(
        "--rounds",
        type=int,
        help="that count; by default 5, 3 of shuffle and ingestion; with --quick 1, 2 of edge and computed",
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--plot", type=Path, help="draw them there: .png, .svg or .pdf")
    arguments = parser.parse_args()
    if arguments.plot and not importlib.util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib: pip install 'aaflow[bench]'")
    console = Console()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="aaflow-bench-") as scratch:
        for name, case in cases(arguments.quick, Path(scratch)).items():
            wanted = arguments.case or [each for each in CASES if each != "ingestion" or not arguments.quick]
            if name in wanted:
                found[name] = run(case, arguments.rounds or case.rounds, again=not arguments.quick)
                console.print(table(name, case, found[name]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, default=_plain), encoding="utf-8")
    if arguments.plot:
        from measure.plot import draw

        draw(found, arguments.plot)


def run(case: Case, rounds: int, *, again: bool) -> dict[str, Any]:
    """Measure a case; see :func:`measure`."""
    here, missing = present(case.names)
    counted, every = measure(case, here, rounds, again=again)
    return {
        "unit": case.unit,
        "rate": case.rate,
        "missing": [*missing, *(each for each in here if each not in counted[0].found)],
        "calm": max(each.others for each in counted) <= CALM,
        "rates": rates(counted, lambda each: each["rate"]),
        "cpu": rates(counted, _cpu) if case.unit != "ranks" else {},
        "rounds": [vars(each) for each in every],
    }


def _cpu(found: Found) -> float:
    """CPU seconds of all processes for what the rate is of: a GB of columns, or 1000 chunks."""
    amount: float = found["bytes"] / 1e9 if "bytes" in found else found["chunks"] / 1000
    return float(found["cpu"] / amount)


def present(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names whose peers are installed, and the others."""
    missing = [name for name in names if name in NEEDS and not importlib.util.find_spec(NEEDS[name])]
    return [name for name in names if name not in missing], missing


def measure(case: Case, names: Sequence[str], rounds: int, *, again: bool) -> tuple[list[Round], list[Round]]:
    """The rounds that count, and all. A peer that fails is told of and left out of all."""
    done: list[Round] = []
    failed: set[str] = set()
    while len([each for each in done if each.others <= CALM]) < rounds and len(done) < (
        2 * rounds if again else rounds
    ):
        turn = len(done) % len(names)
        found, others = {}, [0.0]
        for name in (each for each in (*names[turn:], *names[:turn]) if each not in failed):
            with watched() as seen:
                try:
                    found[name] = case.once(name)
                except RuntimeError as error:
                    if name not in NEEDS:
                        raise
                    print(error, file=sys.stderr)
                    failed.add(name)
            others += [seen.others] if name not in CLUSTERS else []
        done.append(Round({name: found[name] for name in names if name in found}, max(others)))
    done = [Round({name: each.found[name] for name in each.found if name not in failed}, each.others) for each in done]
    return sorted(done, key=lambda each: each.others)[:rounds], done


def rates(counted: Sequence[Round], rate: Callable[[Found], float]) -> dict[str, dict[Column, Figure]]:
    """A rate of all rounds, by name and column."""
    first = counted[0].found
    return {
        name: {column: figure([rate(each.found[name][column]) for each in counted]) for column in first[name]}
        for name in first
    }


def table(name: str, case: Case, found: Mapping[str, Any]) -> Table:
    """The table of a case."""
    rated: Mapping[str, Mapping[Column, Figure]] = found["rates"]
    cores = len(os.sched_getaffinity(0))
    notes = [] if found["calm"] else ["NOT calm: others used the cores"]
    notes += [f"not here: {', '.join(found['missing'])}"] if found["missing"] else []
    notes += [f"4 ranks share {cores} cores"] if name == "shuffle" and cores < 4 else []
    title = "; ".join([f"{name}: {case.rate}, median (least..most)", *notes])
    shown = Table("", *(f"{column} {case.unit}".rstrip() for column in case.columns), title=title, title_justify="left")
    for each, columns in rated.items():
        shown.add_row(each, *(str(columns.get(column, "")) for column in case.columns))
    shown.add_section()
    for target in case.targets:
        if target.ours in rated and target.peer in rated:
            shown.add_row(*_ratio(target, rated, case.columns), style="bold" if target.least else "")
    shown.add_section()
    for each, columns in found["cpu"].items():
        spent = (str(columns[column]) for column in case.columns)
        shown.add_row(f"{each}: CPU s / {case.rate.removesuffix('/s')}", *spent, style="dim")
    return shown


def _ratio(target: Target, rated: Mapping[str, Mapping[Column, Figure]], columns: Sequence[Column]) -> list[str]:
    """A row of ratios, each with its verdict by the median."""
    wanted = f" (at least {target.least:.2g})" if target.least else ""
    cells = [f"{target.ours} / {target.peer}{wanted}"]
    ours, peer = rated[target.ours], rated[target.peer]
    for column in columns:
        if column not in ours or column not in peer:
            cells.append("")
            continue
        ratio = ratios(ours[column], peer[column])
        judged = target.least is not None and (isinstance(column, str) or column >= target.start)
        verdict = (" met" if ratio.median >= (target.least or 0) else " missed") if judged else ""
        cells.append(f"{ratio}{verdict}")
    return cells


def _plain(value: object) -> object:
    if isinstance(value, Figure):
        return value.to_json()
    raise TypeError(type(value))


if __name__ == "__main__":
    main()
