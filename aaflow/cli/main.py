"""The command ``aaflow``.

Exit codes: 0 done; 1 the run failed or something is broken; 2 the call or its input can't be used as given; 3 the index
can't be used (missing, damaged, locked, of another embedder); 130 interrupted or cancelled.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from aaflow import __version__
from aaflow.cli import answer, index, ingest, runs, trace, workflowfile
from aaflow.cli.doctor import doctor
from aaflow.cli.output import exit_code
from aaflow.cli.sites import app as sites_app
from aaflow.errors import AaflowError

app = typer.Typer(
    name="aaflow",
    help="Agentic RAG workflows as MPI task groups of the pilots you already run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("ingest")(ingest.ingest)
app.command("query")(answer.query)
app.command("ask")(answer.ask)
app.command("plan")(ingest.plan)
app.command("run")(workflowfile.run_file)
app.command("status")(runs.status)
app.command("attach")(runs.attach)
app.command("logs")(runs.logs)
app.command("cancel")(runs.cancel)
app.command("drive", hidden=True)(runs.drive)
app.command("trace")(trace.trace)
app.command("doctor")(doctor)
app.add_typer(sites_app, name="sites", help="The machines that aaflow knows.")
app.add_typer(index.app, name="index", help="Look at, check and tidy an index.")


@app.callback(invoke_without_command=True)
def version(show: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Agentic RAG workflows as MPI task groups of the pilots you already run."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command; errors of aaflow are one text on stderr, without a traceback."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        app(standalone_mode=True)
    except (AaflowError, KeyboardInterrupt) as error:
        print(f"aaflow: {error}" if str(error) else "aaflow: interrupted", file=sys.stderr)
        sys.exit(exit_code(type(error)))
    except SystemExit as ended:
        if ended.code == exit_code(KeyboardInterrupt):  # typer has taken the interrupt and says nothing
            print("aaflow: interrupted", file=sys.stderr)
        raise


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    """A batch system ends a job with SIGTERM: end the run as Ctrl-C does."""
    raise KeyboardInterrupt("terminated")


if __name__ == "__main__":
    main()
