"""The style of figures, and their two output formats: PNG for the run folder, SVG with the page's colors for the report."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptgm_fast.models.weights import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The light-mode colors of assets/report/style.css. A PNG keeps them; in an SVG each is replaced by the stylesheet's
# variable, so that one figure on the page works in light and dark mode.
INK, FAINT = "#1b1f24", "#c9d1d9"
SERIES = ("#1f77b4", "#d1690e", "#2a8a2a", "#c62f30", "#7d55ab",
          "#8c564b", "#c7569f", "#6b7683", "#97980f", "#108fa0")  # fmt: skip
VARIABLES = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    **{color: f"var(--series-{number})" for number, color in enumerate(SERIES, start=1)},
}
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure for `save`, sizes in inches."""
    # The object interface: without pyplot there is no display, no global state and nothing to close.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


@contextmanager
def drawing(width: float, height: float, label: str) -> Iterator[Figure]:
    """Yield a figure in the project's style, to draw on within the block. label: text for screen readers."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = new_figure(width, height)
        figure.set_label(label)
        yield figure


def _bytes(figure: Figure, kind: str, **options: Any) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Ticks are created when they are drawn, in the style active then.
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG atomically: `path` holds either its old content or the whole figure."""
    write_atomically(path, _bytes(figure, "png"))


_numbers = iter(range(1, 10**9))


def to_svg(figure: Figure) -> str:
    """An inline SVG element with unique ids, the page's colors and the figure's label, without background or fixed size."""
    metadata = {"Date": None, "Creator": None}
    svg = _bytes(figure, "svg", transparent=True, metadata=metadata).decode()
    svg = svg[svg.index("<svg") :]
    prefix = f"f{next(_numbers)}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace('href="#', f'href="#{prefix}').replace("url(#", f"url(#{prefix}")
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    opening, rest = svg.split(">", 1)
    width = figure.get_figwidth() * 72
    opening = re.sub(r' (width|height)="[\d.]+pt"', "", opening)
    name = html.escape(str(figure.get_label()), quote=True)
    return f'{opening} role="img" aria-label="{name}" style="max-width: {width:.0f}pt"><title>{name}</title>{rest}'
