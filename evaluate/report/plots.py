"""The report's plots: each takes plain figures and returns one SVG, without knowing where the figures come from.

Their parts stand below them: elements, scales with round ticks, axes. Colours are the page's CSS variables.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, WIDE = 540, 250, 1060
"""Pixels of a plot in one of two columns, and the width of one across both."""
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 26, 40
FLOOR = HEIGHT - BOTTOM
Format = Callable[[float], str]
Point = tuple[float, float, str]
"""x, y, and what it is."""


def percent(value: float) -> str:
    """A share for people: 12 %, 3.4 %, 0.02 %."""
    value *= 100
    if value == 0 or abs(value) >= 9.95 or (abs(value) >= 1 and abs(value - round(value)) < 1e-9):
        return f"{value:.0f} %"
    return f"{value:.1f} %" if abs(value) >= 0.95 else f"{value:.1g} %"


def number(value: float) -> str:
    """A number for people: 1,234, 12.3, 0.00012."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.0e}".replace("e-0", "e-")


def measured(value: float) -> str:
    """A measured figure with the digits that it deserves: 68.0, 3.14, 99,877."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def columns(
    label: str, bars: Sequence[float], marks: Mapping[str, Sequence[float]], *, title: str, form: Format = percent
) -> str:
    """One column a layer, and a dash above or across it for each further figure."""
    y = scale([*bars, *(value for values in marks.values() for value in values)], FLOOR, TOP)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(bars))
    wide = min(46.0, step * 0.62)
    parts = [axis_y(y, form, title)]
    for layer, value in enumerate(bars):
        middle, top = LEFT + step * (layer + 0.5), min(y(value), FLOOR - 0.5)
        left, right = middle - wide / 2, middle + wide / 2
        said = ", ".join([form(value), *(f"{name} {form(values[layer])}" for name, values in marks.items())])
        shape = tag("rect", x=left, y=top, width=wide, height=FLOOR - top, rx=min(3.0, wide / 4), class_="s0")
        for series, values in enumerate(marks.values(), 1):
            shape += line(left - 3, y(values[layer]), right + 3, y(values[layer]), f"dash s{series}")
        parts.append(tag("g", tip(f"layer {layer}: {said}") + shape))
        if layer % _label_every(len(bars), 24) == 0:
            parts.append(text(middle, FLOOR + 17, str(layer), "tick mid"))
    return drawing(label, *parts, floor_line(), axis_title("layer"))


def histogram(label: str, edges: Sequence[float], counts: Sequence[int], *, x_title: str, title: str) -> str:
    """Columns between edges."""
    y = scale(list(map(float, counts)), FLOOR, TOP)
    x = Scale(low=edges[0], high=edges[-1], start=LEFT, end=WIDTH - RIGHT)
    parts = [axis_y(y, number, title)]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        said = tip(f"{percent(low)} to {percent(high)} of the tokens: {count:,} neurons")
        width, height = x(high) - x(low) - 1, FLOOR - y(count)
        parts.append(tag("rect", said, x=x(low) + 0.5, y=y(count), width=width, height=height, class_="s0"))
    return drawing(label, *parts, axis_x(x, percent, x_title))


def curves(
    label: str, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, x_title: str, title: str,
    x_form: Format = number, y_form: Format = number, log: bool = False, zero: bool = True, ordered: bool = True,
) -> str:  # fmt: skip
    """Lines, each of (name, xs, ys), coloured by their order, or each in a colour of its own."""
    y = scale([value for _, _, ys in lines for value in ys], FLOOR, TOP, log=log, zero=zero)
    every = [value for _, xs, _ in lines for value in xs]
    low, high = min(every), max(every)
    x = Scale(low=low, high=high if high > low else low + 1, start=LEFT, end=WIDTH - RIGHT)
    parts = [axis_y(y, y_form, title)]
    for index, (name, xs, ys) in enumerate(lines):
        path = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in zip(xs, ys, strict=True))
        colour = f"stroke:{blend(index / max(1, len(lines) - 1))}" if ordered else None
        said = tip(f"{name}: {y_form(ys[-1])} at the end")
        parts.append(tag("path", said, d=path, class_=f"line l{index}", style=colour))
    return drawing(label, *parts, axis_x(x, x_form, x_title))


def scatter(
    label: str, dots: Sequence[Point], *, x_title: str, title: str, numbers: bool = False, diagonal: str = ""
) -> str:
    """Dots of shares up to 1; with ``numbers`` each is a numbered disc, coloured by its order.

    Args:
        diagonal: what lies on the line of equal x and y.
    """
    x = scale([dot[0] for dot in dots], LEFT, WIDTH - RIGHT)
    least = max(0.0, min((dot[1] for dot in dots), default=0.0) - 0.15)
    y = Scale(low=least, high=1.0, start=FLOOR, end=TOP)
    parts = [axis_y(y, percent, title)]
    if x.high > least + 0.02:
        end = min(x.high, 1.0)
        parts.append(tag("line", x1=x(least), y1=y(least), x2=x(end), y2=y(end), class_="reference"))
        parts.append(text(x(end) - 6, y(end) - 7, diagonal, "tick end"))
    for index, (a, b, what) in enumerate(dots):
        colour = f"fill:{blend(index / max(1, len(dots) - 1))}" if numbers else None
        dot = tag("circle", cx=x(a), cy=y(b), r=9.0 if numbers else 4.0, class_="dot s0", style=colour)
        dot += text(x(a), y(b) + 3.5, str(index), "inside") if numbers else ""
        parts.append(tag("g", tip(what) + dot))
    return drawing(label, *parts, axis_x(x, percent, x_title))


def strip(label: str, series: Mapping[str, Sequence[Point]], groups: Sequence[str], *, title: str) -> str:
    """Dots on a logarithmic scale, in named groups side by side; x is the group's number and the place within it."""
    y = scale([dot[1] for dots in series.values() for dot in dots], FLOOR, TOP, log=True)
    step = (WIDE - LEFT - RIGHT) / len(groups)
    parts = [axis_y(y, percent, title, width=WIDE)]
    for index, name in enumerate(groups):
        at = LEFT + step * index
        if index:
            parts.append(line(at, TOP, at, FLOOR, "grid"))
        if index % _label_every(len(groups), 40) == 0 or index == len(groups) - 1:
            parts.append(text(at + step / 2, FLOOR + 17, name, "tick mid"))
    for index, dots in enumerate(series.values()):
        for a, b, what in dots:
            parts.append(tag("circle", tip(what), cx=LEFT + step * a, cy=y(b), r=3.4, class_=f"dot s{index}"))
    return drawing(label, *parts, floor_line(WIDE), axis_title("layer", WIDE), width=WIDE)


def horizontal_bars(
    label: str, rows: Sequence[tuple[str, float, str]], *, reference: float | None = None, log: bool = False
) -> str:
    """Bars from ``reference`` (or the axis), each (name, value, text behind it)."""
    name_width, tail, row = 320.0, 130.0, 28.0
    x = scale([value for _, value, _ in rows], name_width, WIDE - tail, log=log)
    height = row * len(rows) + 12
    parts, origin = [], name_width
    if reference is not None:
        parts.append(line(x(reference), 2.0, x(reference), height - 6, "reference"))
        origin = x(reference) if log else origin
    for index, (name, value, behind) in enumerate(rows):
        middle, end = 6 + row * (index + 0.5), x(value)
        left, wide = min(origin, end), max(abs(end - origin), 2.0)
        parts.append(text(name_width - 12, middle + 4, name, "row end"))
        said = tip(f"{name}: {behind}")
        parts.append(tag("rect", said, x=left, y=middle - 7, width=wide, height=14.0, rx=3, class_="s0"))
        parts.append(text(max(end, origin) + 8, middle + 4, behind, "row"))
    return drawing(label, *parts, width=WIDE, height=height)


def stacked_bars(label: str, rows: Sequence[tuple[str, Mapping[str, int], str]], kinds: Sequence[str]) -> str:
    """Bars made of parts; rows of (name, bytes by kind, text behind it)."""
    name_width, tail, row = 200.0, 100.0, 32.0
    most = max((sum(sizes.values()) for _, sizes, _ in rows), default=1) or 1
    unit = (WIDE - name_width - tail) / most
    parts = []
    for index, (name, sizes, behind) in enumerate(rows):
        middle, at = 6 + row * (index + 0.5), name_width
        parts.append(text(name_width - 12, middle + 4, name, "row end"))
        for kind, size in sizes.items():
            said, wide = tip(f"{name}: {kind}, {size / 1e6:,.2f} MB"), max(size * unit, 0.5)
            colour = f"s{kinds.index(kind) % 6}"
            parts.append(tag("rect", said, x=at, y=middle - 9, width=wide, height=18.0, class_=colour))
            at += size * unit
        parts.append(text(at + 8, middle + 4, behind, "row"))
    return drawing(label, *parts, width=WIDE, height=row * len(rows) + 12)


def heat_map(label: str, rows: Sequence[Sequence[float]], *, title: str) -> str:
    """A cell for each layer (down) and expert (across), darker for more."""
    most = max((value for row in rows for value in row), default=1.0) or 1.0
    experts = max(map(len, rows))
    wide, tall = (WIDTH - LEFT - RIGHT) / experts, min(56.0, max(10.0, 170 / len(rows)))
    parts = []
    for layer, row in enumerate(rows):
        top, baseline = TOP + tall * layer + 1, TOP + tall * layer + tall / 2 + 4
        parts.append(text(LEFT - 7, baseline, str(layer), "tick end"))
        for expert, value in enumerate(row):
            style = f"fill:color-mix(in oklab, var(--s0) {12 + 88 * value / most:.0f}%, var(--card))"
            cell = tag("rect", x=LEFT + wide * expert + 1, y=top, width=wide - 2, height=tall - 2, rx=3, style=style)
            if wide > 44 and tall > 17:
                shade = "inside" if value / most > 0.55 else "mid"
                cell += text(LEFT + wide * (expert + 0.5), baseline, percent(value), shade)
            parts.append(tag("g", tip(f"layer {layer}, expert {expert}: {percent(value)}") + cell))
    bottom = TOP + tall * len(rows)
    parts += [
        text(LEFT + wide * (expert + 0.5), bottom + 16, str(expert), "tick mid")
        for expert in range(0, experts, _label_every(experts, 24))
    ]
    parts += [axis_title(title, floor=bottom - 1), text(0, 10, "layer", "tick")]
    return drawing(label, *parts, height=bottom + 40)


def _label_every(count: int, most: int) -> int:
    """The step at which ``count`` things get at most ``most`` labels."""
    return max(1, -(-count // most))


def tag(name: str, content: str = "", **attributes: object) -> str:
    """One element; `_` in an attribute's name stands for `-`, a trailing one is dropped, None leaves it out."""
    text = ""
    for key, value in attributes.items():
        if value is not None:
            shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
            text += f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"'
    return f"<{name}{text}>{content}</{name}>" if content else f"<{name}{text}/>"


def tip(text: str) -> str:
    """What shows when the pointer rests on an element."""
    return f"<title>{escape(text)}</title>"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line of the CSS class ``kind``."""
    return tag("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=kind)


def text(x: float, y: float, content: str, kind: str) -> str:
    """Text of the CSS class ``kind``, its baseline at ``y``."""
    return tag("text", escape(content), x=x, y=y, class_=kind)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to pixels along one axis."""

    low: float
    high: float
    start: float
    """Pixel of ``low``."""
    end: float
    """Pixel of ``high``."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the scale: multiples of 1, 2 or 5 times a power of ten."""
        low, high = self.low, self.high
        if self.log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            factors = (1, 2, 5) if len(powers) <= 3 else (1,)
            return [10.0**p * f for p in powers for f in factors if low * 0.999 <= 10.0**p * f <= high * 1.001]
        rough = (high - low) / max(1, most - 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def scale(values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = True) -> Scale:
    """A scale that holds ``values``, with some air above them; linear ones start at 0 unless ``zero`` is off."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if log:
        low = max(low, 1e-9)
        spread = max(math.log10(max(high, low) / low), 0.3)
        return Scale(low=low / 10 ** (0.06 * spread), high=low * 10 ** (1.08 * spread), start=start, end=end, log=True)
    span = (high - (0 if zero else low)) or 1.0
    return Scale(low=0.0 if zero else low - 0.08 * span, high=high + 0.06 * span, start=start, end=end)


def axis_y(y: Scale, form: Format, title: str, width: float = WIDTH) -> str:
    """Grid lines with their values, and what they measure."""
    parts = [
        line(LEFT, y(value), width - RIGHT, y(value), "grid") + text(LEFT - 7, y(value) + 4.0, form(value), "tick end")
        for value in y.ticks()
    ]
    return "".join([*parts, text(0, 10, title, "tick")])


def axis_x(x: Scale, form: Format, title: str) -> str:
    """Values below the plot, and what they measure."""
    ticks = [
        line(x(value), FLOOR, x(value), FLOOR + 4, "base") + text(x(value), FLOOR + 17, form(value), "tick mid")
        for value in x.ticks(8)
    ]
    return floor_line() + "".join(ticks) + axis_title(title)


def floor_line(width: float = WIDTH) -> str:
    """The horizontal axis."""
    return line(LEFT, FLOOR, width - RIGHT, FLOOR, "base")


def axis_title(title: str, width: float = WIDTH, floor: float = FLOOR) -> str:
    """What the horizontal axis shows, below it."""
    return text((LEFT + width - RIGHT) / 2, floor + 34, title, "axis")


def drawing(label: str, *parts: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """The whole plot; ``label`` is what a screen reader says."""
    return tag(
        "svg", "".join(parts), viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=label, class_="plot"
    )


def blend(share: float) -> str:
    """A colour between the page's first and last, for things in an order."""
    return f"color-mix(in oklab, var(--late) {100 * share:.0f}%, var(--early))"
