"""An audit's figures and example images as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import torch

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; border-bottom: 1px solid #e4e4e4 }
th { text-align: left; font-weight: 600 } td.n { text-align: right; font-variant-numeric: tabular-nums }
tr.leaks td { background: #fbe9e4 } tr.safe td { background: #e9f4ea }
figure { margin: 1rem 0 } figcaption { color: #555; font-size: .9rem }
img { image-rendering: pixelated; max-width: 100% }
.note { color: #555 }
"""


@dataclass(frozen=True)
class Row:
    """One figure beside what a guess gives; `leaks` says whether it is better than the guess, None for neither."""

    attack: str
    measure: str
    value: float
    baseline: float
    leaks: bool | None


@dataclass(frozen=True)
class Strip:
    """Example images, (N, channels, height, width), under a name."""

    name: str
    images: torch.Tensor = field(repr=False)


@dataclass(frozen=True)
class Chapter:
    """One table of the audit: the released model, a cut, or encrypted predictions at a cut."""

    title: str
    rows: tuple[Row, ...]
    strips: tuple[Strip, ...] = ()
    note: str = ""


def page(title: str, introduction: str, chapters: Sequence[Chapter]) -> str:
    """Return the page, HTML."""
    body = [f"<h1>{escape(title)}</h1><p>{escape(introduction)}</p>"]
    for chapter in chapters:
        body.append(f"<h2>{escape(chapter.title)}</h2>")
        body.append("<table><tr><th>attack</th><th>measure</th><th>found</th><th>guess</th></tr>")
        for row in chapter.rows:
            kind = "" if row.leaks is None else ' class="leaks"' if row.leaks else ' class="safe"'
            body.append(
                f"<tr{kind}><td>{escape(row.attack)}</td><td>{escape(row.measure)}</td>"
                f'<td class="n">{row.value:.4f}</td><td class="n">{row.baseline:.4f}</td></tr>'
            )
        body.append("</table>")
        if chapter.strips:
            names = "; ".join(f"row {number}: {strip.name}" for number, strip in enumerate(chapter.strips, 1))
            picture = base64.b64encode(_picture([strip.images for strip in chapter.strips])).decode()
            body.append(
                f'<figure><img alt="{escape(names)}" src="data:image/png;base64,{picture}">'
                f"<figcaption>{escape(names)}</figcaption></figure>"
            )
        if chapter.note:
            body.append(f'<p class="note">{escape(chapter.note)}</p>')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _picture(rows: Sequence[torch.Tensor]) -> bytes:
    """Rows of images as one PNG, each pixel of the images several of the picture."""
    import matplotlib.image

    low = min(float(row.min()) for row in rows[:1])
    high = max(float(row.max()) for row in rows[:1])
    side = rows[0].shape[-1]
    zoom, gap = max(1, 64 // side), 4
    lines = []
    for row in rows:
        shown = ((row - low) / max(high - low, 1e-9)).clamp(0, 1)
        shown = shown[:, :3] if shown.shape[1] >= 3 else shown[:, :1].expand(-1, 3, -1, -1)
        large = shown.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        padded = torch.nn.functional.pad(large, (0, gap, 0, gap), value=1.0)
        lines.append(torch.cat(list(padded), dim=2))
    whole = torch.cat(lines, dim=1).permute(1, 2, 0).contiguous().numpy()
    out = io.BytesIO()
    matplotlib.image.imsave(out, whole, format="png")
    return out.getvalue()
