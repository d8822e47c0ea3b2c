"""Line charts as SVG text, readable inside a page and as files of their own."""

import itertools
import math
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito's
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 30, 44  # margins around the plot
POINTS = 240  # of a line at the most; longer ones are averaged
DOTS = 40  # lines with as many points or fewer show them
DASHES = ("none", "7 3", "2 3", "10 3 2 3", "1 5", "14 4")  # lines differ without colours, too

Line = tuple[Sequence[float], Sequence[float]]  # x, y

_CHART = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" role="img" \
aria-label="{{ title }}" font-family="system-ui, sans-serif" font-size="12" fill="currentColor">
<text x="{{ left }}" y="16" font-weight="600" font-size="13">{{ title }}</text>
<g stroke="currentColor" stroke-opacity="0.15">
{% for at, _ in rows %}
<line x1="{{ left }}" x2="{{ right }}" y1="{{ at }}" y2="{{ at }}"/>
{% endfor %}
</g>
{% for at, text in rows %}
<text x="{{ left - 6 }}" y="{{ at + 4 }}" text-anchor="end">{{ text }}</text>
{% endfor %}
{% for at, text in columns %}
<text x="{{ at }}" y="{{ bottom + 16 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
<line x1="{{ left }}" x2="{{ right }}" y1="{{ bottom }}" y2="{{ bottom }}" stroke="currentColor"/>
{% for line in lines %}
<polyline fill="none" stroke="{{ line.colour }}" stroke-width="2" stroke-linejoin="round" \
stroke-dasharray="{{ line.dash }}" \
points="{{ line.points }}"/>
{% for x, y, text in line.dots %}
<circle cx="{{ x }}" cy="{{ y }}" r="3" fill="{{ line.colour }}"><title>{{ text }}</title></circle>
{% endfor %}
{% endfor %}
<text x="{{ right }}" y="{{ bottom + 34 }}" text-anchor="end">{{ axis }}</text>
{% if lines|length > 1 %}
{% for line in lines %}
{% set x, y = line.place %}
<line x1="{{ x }}" x2="{{ x + 18 }}" y1="{{ y - 4 }}" y2="{{ y - 4 }}" \
stroke="{{ line.colour }}" stroke-width="2" stroke-dasharray="{{ line.dash }}"/>
<text x="{{ x + 22 }}" y="{{ y }}">{{ line.name }}</text>
{% endfor %}
{% endif %}
</svg>
"""
)


def line_chart(title: str, axis: str, lines: Mapping[str, Line], *, percent: bool = False) -> str:
    """Returns a chart as an SVG element, escaped; its text takes the colour of the page.

    Args:
      title: above the chart.
      axis: what x is.
      lines: x and y by name; points that are not finite are left out.
      percent: y is a share, shown in per cent.
    """
    finite = {name: _finite(*line) for name, line in lines.items()}
    finite = {name: line for name, line in finite.items() if len(line[0])}
    if not finite:
        return ""
    xs, ys = (np.concatenate(values) for values in zip(*finite.values(), strict=True))
    x_ticks, y_ticks = ticks(xs.min(), xs.max()), ticks(ys.min(), ys.max())
    x_range = (xs.min(), xs.max())
    x_ticks = [x for x in x_ticks if x_range[0] <= x <= x_range[1]] or [x_range[0]]
    y_range = (min(y_ticks[0], ys.min()), max(y_ticks[-1], ys.max()))
    bottom = HEIGHT - BOTTOM
    at_x = lambda x: _scale(x, x_range, (LEFT + 4, WIDTH - RIGHT))
    at_y = lambda y: _scale(y, y_range, (bottom, TOP))
    drawn, places_of_names = [], _legend(list(finite), bottom + 34)
    styles = itertools.cycle(zip(COLOURS, DASHES, strict=True))
    for (name, (x, y)), (colour, dash) in zip(finite.items(), styles, strict=False):
        places = [(at_x(a), at_y(b)) for a, b in zip(*_thinned(x, y), strict=True)]
        texts = [f"{name}: {_text(b, percent)} at {_text(a)}" for a, b in zip(x, y, strict=True)]
        drawn.append(
            {
                "name": name,
                "colour": colour,
                "dash": dash,
                "points": " ".join(f"{a},{b}" for a, b in places),
                "dots": [(*p, t) for p, t in zip(places, texts, strict=True)]
                if len(x) <= DOTS
                else [],
                "place": places_of_names[name],
            }
        )
    return _CHART.render(
        title=title,
        axis=axis,
        lines=drawn,
        width=WIDTH,
        height=places_of_names[name][1] + HEIGHT - bottom - 34,
        left=LEFT,
        right=WIDTH - RIGHT,
        bottom=bottom,
        rows=[(at_y(y), _text(y, percent)) for y in y_ticks],
        columns=[(at_x(x), _text(x)) for x in x_ticks],
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers that cover low..high, 1, 2 or 5 times a power of ten.

    Around a constant they go from 0 to twice its value.
    """
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # equal up to rounding
        low, high = min(2 * low, 0.0), max(2 * low, 0.0)
    if high == low:
        high = 1.0
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= 0.7 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _legend(names: Sequence[str], y: int) -> dict[str, tuple[int, int]]:
    """Returns where each name stands: rows that leave room for the name of the axis."""
    places, x = {}, LEFT
    for name in names:
        width = 36 + 7 * len(name)
        if x > LEFT and x + width > WIDTH - RIGHT - 30:
            x, y = LEFT, y + 18
        places[name] = x, y
        x += width
    return places


def _finite(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    kept = np.isfinite(x) & np.isfinite(y)
    return x[kept], y[kept]


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = min(len(x), POINTS)
    return tuple(np.array([part.mean() for part in np.array_split(v, parts)]) for v in (x, y))


def _scale(value: float, old: tuple[float, float], new: tuple[float, float]) -> float:
    share = (value - old[0]) / (old[1] - old[0]) if old[1] > old[0] else 0.5
    return round(new[0] + share * (new[1] - new[0]), 1)


def _text(value: float, percent: bool = False) -> str:
    if percent:
        return f"{100 * value:.4g} %"
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:.4g}"
