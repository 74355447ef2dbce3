"""The data plane against real peers: an edge in a node, an edge between nodes, a shuffle between ranks.

    python benchmarks/dataplane.py [--quick] [--case edge|network|shuffle …] [--rounds N] [--json FILE] [--plot FILE]

edge: one producer and one consumer, a process and a core each; batches of rows with an id, a text of about 800 bytes
and a vector of 384 floats; the consumer reads every byte where it lies. aaflow's edge in shared memory (also with the
vectors written in place), beside: the machine's own **memcpy** (the same buffers copied once into shared memory used
before, and read: no Arrow; an edge could reach that at most), **iceoryx2** with Arrow streams, a **fresh file** in
memory for every batch, **pickle 5 out of band** over a Unix socket into buffers used again, and plain **pickle** over
one.
network: the same over the loopback interface: aaflow's edge between nodes beside raw **ZeroMQ** that sends the bare
buffers as frames, both without and with CURVE.
shuffle: a table in the memory of 2 and of 4 ranks, every row to a rank by chance: the communicator ``mpi`` beside
mpi4py's **pickle**-based ``alltoall`` (also with pickle 5 out of band), **Dask**'s P2P shuffle, **Ray** (actors that
split and join tables in its object store), and ``cylon``. Ranks of a job move it three times; the figure is of the
second and the third, when memory has been used before. The first stands in the JSON.

What is measured takes turns in every round, in processes that are fresh, and what arrives is compared with what was
sent. Ratios are taken inside a round. A round in which other processes used more than a tenth of the cores does not
count and is run again, up to twice the rounds asked for (not with --quick); if too few are calm, the calmest count, and
the table says so. (While Dask and Ray run nobody looks: their own daemons can't be told from others.) Peers that are
not installed (``pip install 'aaflow[bench]'``; pycylon is not on PyPI) or fail are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure.figures import Figure, figure, ratios
from measure.machine import watched
from measure.processes import flow, shuffle
from rich.console import Console
from rich.table import Table

#: Others may use so much of the cores in a round that counts.
CALM = 0.10
#: What a peer needs beside aaflow, by the name of a module.
NEEDS = {"iceoryx2": "iceoryx2", "dask": "distributed", "ray": "ray", "cylon": "pycylon"}
CLUSTERS = ("dask", "ray")

#: What one measurement gave: ``GB/s`` and whatever else stands in the JSON.
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
        rounds: that count.
        targets: ratios to show.
        once: measure one name, at all columns that it is measured at.
    """

    names: tuple[str, ...]
    columns: tuple[int, ...]
    unit: str
    rounds: int
    targets: tuple[Target, ...]
    once: Callable[[str], Mapping[int, Found]]


@dataclass(frozen=True)
class Round:
    """All names once, and what others used of the cores meanwhile, at most."""

    found: Mapping[str, Mapping[int, Found]]
    others: float


def cases(quick: bool) -> dict[str, Case]:
    """All cases."""
    edge = (1024, 16384) if quick else (1024, 4096, 16384, 65536)
    network = (16384,) if quick else (1024, 16384, 65536)
    size = 128_000_000 if quick else 2_000_000_000
    cores = sorted(os.sched_getaffinity(0))
    how: dict[str, Any] = {"seconds": 0.1, "least": 6, "pool": 16384} if quick else {"seconds": 1.0, "least": 12}
    how["cores"] = (cores[0], cores[1 % len(cores)])
    against = (("memcpy", 0.7, 16384), ("iceoryx2", None, 0), ("fresh file", 4, 0), ("pickle 5 out of band", 2, 0))
    peers = (*against, ("pickle", 10, 0))
    few = (2,) if quick else (2, 4)
    return {
        "edge": Case(
            ("memcpy", "edge", "edge, in place", "iceoryx2", "fresh file", "pickle 5 out of band", "pickle"),
            edge,
            "rows a batch",
            2 if quick else 5,
            tuple(Target(ours, *each) for ours in ("edge", "edge, in place") for each in peers),
            lambda name: flow(name, edge, **how),
        ),
        "network": Case(
            ("edge, TCP", "ZeroMQ", "edge, TCP, CURVE", "ZeroMQ, CURVE"),
            network,
            "rows a batch",
            2 if quick else 5,
            (Target("edge, TCP", "ZeroMQ"), Target("edge, TCP, CURVE", "ZeroMQ, CURVE")),
            lambda name: flow(name, network, **how),
        ),
        "shuffle": Case(
            ("mpi", "cylon", "ray", "dask", "pickle 5 out of band", "pickle"),
            (2, 4),
            "ranks",
            1 if quick else 3,
            (Target("mpi", "pickle", 8), Target("mpi", "cylon", 1), *(Target("mpi", each) for each in ("ray", "dask"))),
            lambda name: {ranks: shuffle(name, ranks, size) for ranks in (few if name in CLUSTERS else (2, 4))},
        ),
    }


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description="The data plane against real peers.")
    parser.add_argument("--quick", action="store_true", help="small batches and tables, few rounds: under a minute")
    parser.add_argument("--case", action="append", choices=("edge", "network", "shuffle"), help="may be repeated")
    parser.add_argument("--rounds", type=int, help="that count; by default 5 and 3 (shuffle), and 2 and 1 with --quick")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--plot", type=Path, help="draw them there: .png, .svg or .pdf")
    arguments = parser.parse_args()
    if arguments.plot and not importlib.util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib: pip install 'aaflow[bench]'")
    console = Console()
    found: dict[str, Any] = {}
    for name, case in cases(arguments.quick).items():
        if name in (arguments.case or cases(arguments.quick)):
            here, missing = present(case.names)
            counted, every = measure(case, here, arguments.rounds or case.rounds, again=not arguments.quick)
            found[name] = {
                "unit": case.unit,
                "missing": [*missing, *(each for each in here if each not in counted[0].found)],
                "calm": max(each.others for each in counted) <= CALM,
                "rates": rates(counted, lambda each: each["GB/s"]),
                "cpu": rates(counted, lambda each: each["cpu"] / each["bytes"] * 1e9) if name != "shuffle" else {},
                "rounds": [vars(each) for each in every],
            }
            console.print(table(name, case, found[name]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, default=_plain), encoding="utf-8")
    if arguments.plot:
        from measure.plot import draw

        draw(found, arguments.plot)


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


def rates(counted: Sequence[Round], rate: Callable[[Found], float]) -> dict[str, dict[int, Figure]]:
    """A rate of all rounds, by name and column."""
    first = counted[0].found
    return {
        name: {column: figure([rate(each.found[name][column]) for each in counted]) for column in first[name]}
        for name in first
    }


def table(name: str, case: Case, found: Mapping[str, Any]) -> Table:
    """The table of a case."""
    rated: Mapping[str, Mapping[int, Figure]] = found["rates"]
    cores = len(os.sched_getaffinity(0))
    notes = [] if found["calm"] else ["NOT calm: others used the cores"]
    notes += [f"not here: {', '.join(found['missing'])}"] if found["missing"] else []
    notes += [f"{case.columns[-1]} ranks share {cores} cores"] if name == "shuffle" and cores < case.columns[-1] else []
    title = "; ".join([f"{name}: GB/s, median (least..most)", *notes])
    shown = Table("", *(f"{column} {case.unit}" for column in case.columns), title=title, title_justify="left")
    for each, columns in rated.items():
        shown.add_row(each, *(str(columns.get(column, "")) for column in case.columns))
    shown.add_section()
    for target in case.targets:
        if target.ours in rated and target.peer in rated:
            shown.add_row(*_ratio(target, rated, case.columns), style="bold" if target.least else "")
    shown.add_section()
    for each, columns in found["cpu"].items():
        spent = (str(columns[column]) for column in case.columns)
        shown.add_row(f"{each}: CPU s/GB", *spent, style="dim")
    return shown


def _ratio(target: Target, rated: Mapping[str, Mapping[int, Figure]], columns: Sequence[int]) -> list[str]:
    """A row of ratios, each with its verdict by the median."""
    wanted = f" (at least {target.least:g})" if target.least else ""
    cells = [f"{target.ours} / {target.peer}{wanted}"]
    ours, peer = rated[target.ours], rated[target.peer]
    for column in columns:
        if column not in ours or column not in peer:
            cells.append("")
            continue
        ratio = ratios(ours[column], peer[column])
        judged = target.least is not None and column >= target.start
        verdict = (" met" if ratio.median >= (target.least or 0) else " missed") if judged else ""
        cells.append(f"{ratio}{verdict}")
    return cells


def _plain(value: object) -> object:
    if isinstance(value, Figure):
        return value.to_json()
    raise TypeError(type(value))


if __name__ == "__main__":
    main()
