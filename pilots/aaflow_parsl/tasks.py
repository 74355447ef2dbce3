"""What a Parsl worker runs. Parsl carries two strings there and one JSON text back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aaflow.pilot import start_stage


def run_stage(run_folder: str, stage: str, inputs: Sequence[Any] = ()) -> str:
    """Run the task group of a stage; ``inputs`` are the results of the groups before it, which Parsl waited for."""
    return start_stage(run_folder, stage)
