"""A picture of what cuts cost, along the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from splitsec.advisor.cut_costs import CutCost
from splitsec.errors import ConfigError

_ONLINE, _TOTAL, _CROSSING, _TAIL = "#1b6ca8", "#6aa5d0", "#c8553d", "#588157"
_MOST_LABELS = 40


def draw(costs: Sequence[CutCost], path: Path, title: str) -> None:
    """Draw milliseconds above, bytes and work below, and write the picture in the format of the file's suffix.

    Raises:
        ConfigError: a suffix that matplotlib does not know.
    """
    check_format(path)
    from matplotlib.figure import Figure

    places = range(len(costs))
    figure = Figure(figsize=(max(8.0, 0.28 * len(costs) + 3), 7.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    known = [(place, cost.encrypted) for place, cost in enumerate(costs) if cost.encrypted is not None]
    at = [place for place, _ in known]
    total = [encrypted.online_ms + encrypted.offline_ms for _, encrypted in known]
    above.plot(at, total, "o-", ms=3, color=_TOTAL, label="with offline work")
    above.plot(at, [encrypted.online_ms for _, encrypted in known], "o-", ms=3, color=_ONLINE, label="online")
    missing = [place for place, cost in enumerate(costs) if cost.encrypted is None]
    for place in missing:
        above.axvspan(place - 0.5, place + 0.5, color="0.92", lw=0)
    above.set_yscale("log")
    above.grid(axis="y", alpha=0.3)
    above.set_ylabel("encrypted prediction, ms (predicted)")
    above.set_title(title)
    above.legend(title="grey: no encrypted form" if missing else None)
    below.plot(places, [4 * cost.elements for cost in costs], "o-", ms=3, color=_CROSSING, label="activation, bytes")
    moved = [encrypted.bytes_online for _, encrypted in known]
    below.plot(at, moved, "s-", ms=3, color=_ONLINE, label="encrypted tail, bytes online")
    below.set_yscale("log")
    below.set_ylabel("bytes")
    work = below.twinx()
    percent = [100 * cost.tail_macs / max(1, cost.front_macs + cost.tail_macs) for cost in costs]
    work.plot(places, percent, "--", color=_TAIL, lw=1.5)
    work.set_ylabel("multiply-adds left to the server, % (dashed)", color=_TAIL)
    work.set_ylim(0, 105)
    below.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False)
    every = -(-len(costs) // _MOST_LABELS)
    below.set_xticks([*places][::every], [cost.name for cost in costs][::every], rotation=90, fontsize=7)
    below.set_xlabel("cut after")
    figure.savefig(path, dpi=130)


def check_format(path: Path) -> None:
    """Raise `ConfigError` for a file whose suffix names no kind of picture."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ConfigError(
            f"cannot draw {path}: end it with one of {', '.join(f'.{suffix}' for suffix in sorted(known))}"
        )
