"""Random kills over the life of streaming runs, as many as wanted; goes on where it was stopped.

    python tests/faults/campaign.py --kills 200 --seed 7 --state kills.jsonl
    python tests/faults/campaign.py --cluster --kills 100 --seed 7 --state faults.jsonl

Every kill ends any one process of a run (driver, keepers, launchers, proxies, ranks; with Parsl its interchange, pools
and workers) at any moment from the start of the command to its end. Then everything else has to end within 10 s, with
one error that names the stage, or the run goes on if it did not need its victim; nothing may be left; the index has to
be whole and to have kept what was committed; and a rerun has to end with the content of an undisturbed run.

On the virtual cluster (``--cluster``) it may also be a node that is lost with all on it, the job that is cancelled, or
the shared folder that a node no longer has.

The state file has a line of JSON for each kill that was done. Exit code 1: something did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from kills import Kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", action="store_true", help="runs on the virtual Slurm cluster, from its login node")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--state", type=Path, required=True, help="what is done; is appended to")
    parser.add_argument("--folder", type=Path, help="for the runs; those of kills that did not hold stay in there")
    parser.add_argument("--only", type=int, action="append", help="do this kill, done or not; may be repeated")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # ends its run
    lines = options.state.read_text().splitlines() if options.state.exists() else []
    done = {entry["number"]: entry for entry in map(json.loads, lines) if entry["seed"] == options.seed}
    wanted = options.only or [number for number in range(options.kills) if number not in done]
    if wanted:
        folder = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
        made = Path(tempfile.mkdtemp(prefix="campaign-", dir=folder))
        kind = cluster_faults() if options.cluster else Kills
        with contextlib.closing(kind(made, options.seed, alone=True)) as kills:
            for number in wanted:
                outcome = kills.do(number)
                done[number] = {"seed": options.seed, **outcome.to_json()}
                with options.state.open("a") as state:
                    state.write(json.dumps(done[number]) + "\n")
                words = "held" if outcome.held else f"DID NOT HOLD: {outcome.problems}"
                print(
                    f"{number}: {outcome.pilot}, {outcome.role} {outcome.stage} after {outcome.after:.1f} s, "
                    f"gone in {outcome.seconds:.1f} s, load {outcome.load:.1f}: {words}",
                    flush=True,
                )
    failed = [number for number, entry in sorted(done.items()) if entry["problems"]]
    missed = [number for number, entry in sorted(done.items()) if entry["missed"] is not None]
    print(f"{len(done) - len(failed)} of {len(done)} kills held; not these: {failed}; a second try for load: {missed}")
    print(dict(Counter(entry["role"] for entry in done.values()).most_common()))
    return 1 if failed else 0


def cluster_faults() -> type[Kills]:
    """Kills on the virtual cluster."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
    from clusterfaults import ClusterFaults
    from virtualcluster import forbidden, lacking

    if why := lacking() or forbidden():
        sys.exit(why)
    return ClusterFaults


if __name__ == "__main__":
    sys.exit(main())
