"""One picture of what ``dataplane.py`` found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from measure.figures import Figure

_OURS = "#c0392b"
_OTHERS = ["#222222", "#2c6fbb", "#3a9d5d", "#8e6bbf", "#c98a1b", "#7f8c8d", "#5fb3b3"]


def draw(found: Mapping[str, Any], file: Path) -> None:
    """A panel a case: medians, with the least and the most."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    picture = Picture(figsize=(5 * len(found), 4), layout="constrained")
    panels = picture.subplots(1, len(found), squeeze=False)[0]
    for panel, (name, case) in zip(panels, found.items(), strict=True):
        (_lines if case["unit"] == "rows a batch" else _bars)(panel, case["rates"])
        calm = "" if case["calm"] else " (others used the cores)"
        panel.set(title=f"{name}{calm}", xlabel=case["unit"], ylabel=case["rate"], ylim=(0, None))
        panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    picture.savefig(file, dpi=150)


def _lines(panel: Axes, rates: Mapping[str, Mapping[Any, Figure]]) -> None:
    columns = sorted({column for each in rates.values() for column in each})
    for name, color, dashed in _colors(rates):
        at = [columns.index(column) for column in rates[name]]
        medians, spread = _spread(rates[name])
        panel.errorbar(
            at, medians, spread, label=name, color=color, linestyle="--" if dashed else "-", marker="o", capsize=2
        )
    panel.set_xticks(range(len(columns)), [f"{column // 1024}k" for column in columns])


def _bars(panel: Axes, rates: Mapping[str, Mapping[Any, Figure]]) -> None:
    columns = sorted({column for each in rates.values() for column in each})
    width = 0.8 / len(rates)
    for number, (name, color, second) in enumerate(_colors(rates)):
        at = [columns.index(column) + (number - (len(rates) - 1) / 2) * width for column in rates[name]]
        medians, spread = _spread(rates[name])
        panel.bar(at, medians, width, yerr=spread, label=name, color=color, alpha=0.5 if second else 1, capsize=2)
    panel.set_xticks(range(len(columns)), [str(column) for column in columns])


def _colors(rates: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Name, colour, and whether it is a second form of ours."""
    others = iter(_OTHERS)
    ours = [name for name in rates if name.startswith("edge") or name in ("mpi", "fused", "unfused")]
    return [(name, _OURS, name != ours[0]) if name in ours else (name, next(others), False) for name in rates]


def _spread(rates: Mapping[Any, Figure]) -> tuple[list[float], list[list[float]]]:
    medians = [each.median for each in rates.values()]
    below = [each.median - min(each.values) for each in rates.values()]
    above = [max(each.values) - each.median for each in rates.values()]
    return medians, [below, above]
