"""A sweep as a picture: two logarithmic charts, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

COLOURS = ("#c2410c", "#1d4ed8", "#15803d")
WIDTH, HEIGHT, MARGIN = 420, 300, 56
PANELS = (("step", "seconds a step", 1.0), ("peak_memory", "peak memory, MB", 1e6))


def as_svg(sweep: Mapping[str, Any]) -> str:
    """Seconds and memory against tokens, a line a competitor."""
    panels = [_panel(index, sweep, *panel) for index, panel in enumerate(PANELS)]
    size = f'width="{2 * WIDTH}" height="{HEIGHT}" viewBox="0 0 {2 * WIDTH} {HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11" fill="#333"'
    background = f'<rect width="{2 * WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', background, *panels, "</svg>", ""])


def _panel(index: int, sweep: Mapping[str, Any], key: str, title: str, unit: float) -> str:
    lines = {
        name: [(point["tokens"], point[key] / unit) for point in each["points"]]
        for name, each in sweep.items()
        if each["points"]
    }
    tokens = [x for line in lines.values() for x, _ in line]
    values = [y for line in lines.values() for _, y in line]
    across = _Axis(tokens, MARGIN, WIDTH - 12)
    up = _Axis(values, HEIGHT - 40, 30)
    parts = [f'<text x="{MARGIN}" y="18" font-weight="bold">{escape(title)}</text>']
    for tick in across.ticks(2):
        x = across.place(tick)
        parts.append(f'<line x1="{x:.1f}" y1="30" x2="{x:.1f}" y2="{HEIGHT - 40}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 24}" text-anchor="middle">{tick:,.0f}</text>')
    for tick in up.ticks(10):
        y = up.place(tick)
        parts.append(f'<line x1="{MARGIN}" y1="{y:.1f}" x2="{WIDTH - 12}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{(MARGIN + WIDTH) // 2}" y="{HEIGHT - 8}" text-anchor="middle">tokens</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = " ".join(f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>')
        exponent = sweep[name]["exponents"][key]
        label = escape(name) + (f": tokens^{exponent:.2f}" if exponent is not None else "")
        parts.append(f'<text x="{MARGIN + 10}" y="{46 + 15 * number}" fill="{colour}">{label}</text>')
    return f'<g transform="translate({index * WIDTH} 0)">' + "".join(parts) + "</g>"


class _Axis:
    """Values on a logarithmic axis between two pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._start, self._end = start, end
        self._low, self._high = min(values), max(values)
        if self._low == self._high:
            self._low, self._high = self._low / 2, self._high * 2

    def place(self, value: float) -> float:
        part = math.log(value / self._low) / math.log(self._high / self._low)
        return self._start + part * (self._end - self._start)

    def ticks(self, base: int) -> list[float]:
        """Powers of `base` within the axis, and its ends where those are fewer than two."""
        first, last = math.ceil(math.log(self._low, base) - 1e-9), math.floor(math.log(self._high, base) + 1e-9)
        powers = [float(base) ** power for power in range(first, last + 1)]
        return powers if len(powers) > 1 else [self._low, self._high]
