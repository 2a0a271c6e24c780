"""A picture of what a cut costs, along the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from splitsec.choosing.listing import CutCost
from splitsec.errors import ConfigError

_ONLINE, _TOTAL, _CROSSING, _TAIL = "#1b6ca8", "#6aa5d0", "#c8553d", "#588157"
_MOST_LABELS = 40


def draw(costs: Sequence[CutCost], path: Path, title: str) -> None:
    """Write a picture in the format of the file's suffix: milliseconds above, bytes and work below.

    Raises:
        ConfigError: a suffix that matplotlib does not know.
    """
    check_format(path)
    from matplotlib.figure import Figure

    places = range(len(costs))
    figure = Figure(figsize=(max(8.0, 0.28 * len(costs) + 3), 7.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    known = [(place, one.encrypted) for place, one in enumerate(costs) if one.encrypted is not None]
    at = [place for place, _ in known]
    total = [one.online_ms + one.offline_ms for _, one in known]
    above.plot(at, total, "o-", ms=3, color=_TOTAL, label="with offline work")
    above.plot(at, [one.online_ms for _, one in known], "o-", ms=3, color=_ONLINE, label="online")
    missing = [place for place, one in enumerate(costs) if one.encrypted is None]
    for place in missing:
        above.axvspan(place - 0.5, place + 0.5, color="0.92", lw=0)
    above.set_yscale("log")
    above.grid(axis="y", alpha=0.3)
    above.set_ylabel("encrypted prediction, ms (predicted)")
    above.set_title(title)
    above.legend(title="grey: no encrypted form" if missing else None)
    below.plot(places, [4 * one.elements for one in costs], "o-", ms=3, color=_CROSSING, label="activation, bytes")
    moved = [one.bytes_online for _, one in known]
    below.plot(at, moved, "s-", ms=3, color=_ONLINE, label="encrypted tail, bytes online")
    below.set_yscale("log")
    below.set_ylabel("bytes")
    share = below.twinx()
    whole = [max(1, one.front_macs + one.tail_macs) for one in costs]
    share.plot(
        places, [100 * one.tail_macs / all_ for one, all_ in zip(costs, whole, strict=True)], "--", color=_TAIL, lw=1.5
    )
    share.set_ylabel("multiply-adds left to the server, % (dashed)", color=_TAIL)
    share.set_ylim(0, 105)
    below.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False)
    every = -(-len(costs) // _MOST_LABELS)
    below.set_xticks([*places][::every], [one.name for one in costs][::every], rotation=90, fontsize=7)
    below.set_xlabel("cut after")
    figure.savefig(path, dpi=130)


def check_format(path: Path) -> None:
    """Raise `ConfigError` for a file whose suffix names no kind of picture."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ConfigError(f"cannot draw {path}: end it with one of {', '.join(f'.{one}' for one in sorted(known))}")
