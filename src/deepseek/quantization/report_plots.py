"""The report's two plots as SVG text; a plotting library would weigh more than the whole room."""

import math
from collections.abc import Sequence
from html import escape

_WIDTH = 900
_BAR = 15
_LEFT = 260
"""Room for names beside the bars."""
_MARGIN = 46


def bar_plot(bars: Sequence[tuple[str, float, str]]) -> str:
    """Return horizontal bars (name, value, class) on a logarithmic scale, the longest first.

    Sensitivities span decades: on a linear scale all but the first would vanish.
    """
    ordered = sorted(bars, key=lambda bar: -bar[1])
    positive = [value for _, value, _ in ordered if value > 0]
    if not positive:
        return "<p>No unit moves the model at all.</p>"
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    span = max(1, high - low)

    def place(value: float) -> float:
        share = (math.log10(value) - low) / span if value > 0 else 0.0
        return _LEFT + share * (_WIDTH - _LEFT - 80)

    height = len(ordered) * _BAR + 24
    grid = "".join(
        f'<line class="axis" x1="{place(10.0**e):.1f}" y1="0" x2="{place(10.0**e):.1f}" '
        f'y2="{height - 18}"/><text x="{place(10.0**e):.1f}" y="{height - 4}" '
        f'text-anchor="middle">1e{e}</text>'
        for e in range(low, low + span + 1)
    )
    drawn = "".join(
        f'<text class="name" x="{_LEFT - 6}" y="{row * _BAR + 11}" text-anchor="end">'
        f'{escape(name)} {kind}</text><rect x="{_LEFT}" y="{row * _BAR + 2}" '
        f'width="{place(value) - _LEFT:.1f}" height="{_BAR - 4}" fill="var(--{kind})">'
        f"<title>{escape(name)} {kind}: {value:.3g}</title></rect>"
        for row, (name, value, kind) in enumerate(ordered)
    )
    return _svg(height, "sensitivity of each unit", grid + drawn)


def front_plot(points: Sequence[tuple[float, float]], *, threshold: float | None) -> str:
    """Return a line through (bits per weight, relative accuracy), and the threshold's line."""
    height = 320
    values = [y for _, y in points] + ([threshold] if threshold is not None else [])
    x_low, x_high = _padded([x for x, _ in points])
    y_low, y_high = _padded(values)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _MARGIN + (x - x_low) / (x_high - x_low) * (_WIDTH - 2 * _MARGIN),
            height - _MARGIN - (y - y_low) / (y_high - y_low) * (height - 2 * _MARGIN),
        )

    places = [at(x, y) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="var(--int8)"><title>{x:.2f} bits: '
        f"{y:.4f}</title></circle>"
        for (px, py), (x, y) in zip(places, points, strict=True)
    )
    drawn = f'<polyline points="{path}" fill="none" stroke="var(--int8)" stroke-width="1.5"/>{dots}'
    if threshold is not None:
        y = at(x_low, threshold)[1]
        drawn += (
            f'<line x1="{_MARGIN}" y1="{y:.1f}" x2="{_WIDTH - _MARGIN}" y2="{y:.1f}" '
            f'stroke="var(--bad)" stroke-dasharray="5 4"/><text x="{_WIDTH - _MARGIN}" '
            f'y="{y - 5:.1f}" text-anchor="end">threshold {threshold:g}</text>'
        )
    return _svg(
        height, "size and accuracy", _axes(height, (x_low, x_high), (y_low, y_high)) + drawn
    )


def _axes(height: int, xs: tuple[float, float], ys: tuple[float, float]) -> str:
    bottom, right = height - _MARGIN, _WIDTH - _MARGIN
    lines = (
        f'<line class="axis" x1="{_MARGIN}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
        f'<line class="axis" x1="{_MARGIN}" y1="{_MARGIN}" x2="{_MARGIN}" y2="{bottom}"/>'
    )
    labels = "".join(
        f'<text x="{_MARGIN + share * (right - _MARGIN):.0f}" y="{bottom + 16}" '
        f'text-anchor="middle">{xs[0] + share * (xs[1] - xs[0]):.1f}</text>'
        f'<text x="{_MARGIN - 5}" y="{bottom - share * (bottom - _MARGIN) + 4:.0f}" '
        f'text-anchor="end">{ys[0] + share * (ys[1] - ys[0]):.3f}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    title = (
        f'<text x="{right}" y="{height - 8}" text-anchor="end">bits per weight</text>'
        f'<text x="{_MARGIN}" y="{_MARGIN - 14}">relative accuracy</text>'
    )
    return lines + labels + title


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Return bounds a little outside of the values, never equal ones."""
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.01 or 1.0
    return low - room, high + room


def _svg(height: int, title: str, content: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">{content}</svg>'
