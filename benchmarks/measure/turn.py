"""One engine in a process of its own: ``python -m measure.turn (aaflow|bare) PILOT``; prints its timings as JSON.

Little is imported before the clock starts, so that no engine finds loaded what it would have to load elsewhere.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from measure.engines import BARE, GROUPS, Aaflow, Engine, take_began, write_rank

TIMINGS = (
    "first rank of a first group",
    "the same, RADICAL-Pilot's coming up left out",
    "first rank of a next group",
    "a next group",
)
#: Seconds between two looks at an engine.
LOOK_SECONDS = 0.005


def once(kind: str, pilot: str) -> dict[str, float]:
    """The timings of one engine in this process; of the groups after the first the median."""
    with tempfile.TemporaryDirectory(prefix="pilots-", dir="/tmp") as name:
        folder = Path(name).resolve()
        (notes := folder / "notes").mkdir()
        rank = write_rank(notes)
        engine: Engine = Aaflow(folder, rank, pilot) if kind == "aaflow" else BARE[pilot](folder, rank)
        begun = threading.Event()
        with ThreadPoolExecutor(1) as looking, ExitStack() as stack:
            stack.callback(begun.set)
            coming_up = looking.submit(engine_seconds, engine, begun)
            began = time.time()
            engine.start()
            stack.callback(engine.end)
            engine.run_group(0)
            begun.set()
            first = take_began(notes) - began
            if engine.comes_up():
                raise RuntimeError("nobody noticed that RADICAL-Pilot was up: the words for it have changed")
            until_rank, whole = [], []
            for number in range(1, GROUPS):
                submitted = time.time()
                engine.run_group(number)
                whole.append(time.time() - submitted)
                until_rank.append(take_began(notes) - submitted)
    if pilot == "radical" and not coming_up.result():
        raise RuntimeError("RADICAL-Pilot was never waited for: its session has another folder")
    return dict(zip(TIMINGS, (first, first - coming_up.result(), median(until_rank), median(whole)), strict=True))


def engine_seconds(engine: Engine, begun: threading.Event) -> float:
    """Seconds for which everything waits for an engine's own processes, until its first group has run."""
    seconds, last = 0.0, time.monotonic()
    while not begun.wait(LOOK_SECONDS):
        now = time.monotonic()
        seconds += now - last if engine.comes_up() else 0.0
        last = now
    return seconds


if __name__ == "__main__":
    print(json.dumps(once(*sys.argv[1:])))
