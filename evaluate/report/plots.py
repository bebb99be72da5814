"""The report's plots. Each takes plain figures and gives one SVG; none of them knows where the figures come from."""

from collections.abc import Mapping, Sequence
from html import escape

from .svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDE,
    WIDTH,
    Format,
    Scale,
    axis_x,
    axis_y,
    blend,
    drawing,
    number,
    percent,
    scale,
    tag,
    tip,
)

_FLOOR = HEIGHT - BOTTOM
Point = tuple[float, float, str]
"""x, y, and what it is."""


def columns(
    label: str, bars: Sequence[float], marks: Mapping[str, Sequence[float]], *, title: str, form: Format = percent
) -> str:
    """One column a layer, and a dash above or across it for each further figure."""
    every = [*bars, *(value for values in marks.values() for value in values)]
    y = scale(every, _FLOOR, TOP)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(bars))
    wide = min(46.0, step * 0.62)
    parts = [axis_y(y, form, title)]
    for index, value in enumerate(bars):
        middle = LEFT + step * (index + 0.5)
        said = ", ".join([form(value), *(f"{name} {form(values[index])}" for name, values in marks.items())])
        top = min(y(value), _FLOOR - 0.5)
        shape = tag(
            "rect", x=middle - wide / 2, y=top, width=wide, height=_FLOOR - top, rx=min(3.0, wide / 4), class_="s0"
        )
        for number_, values in enumerate(marks.values(), 1):
            at = y(values[index])
            shape += tag(
                "line", x1=middle - wide / 2 - 3, x2=middle + wide / 2 + 3, y1=at, y2=at, class_=f"dash s{number_}"
            )
        parts.append(tag("g", tip(f"layer {index}: {said}") + shape))
        if index % max(1, -(-len(bars) // 24)) == 0:
            parts.append(tag("text", str(index), x=middle, y=_FLOOR + 17, class_="tick mid"))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_FLOOR, y2=_FLOOR, class_="base"))
    parts.append(tag("text", "layer", x=(LEFT + WIDTH - RIGHT) / 2, y=_FLOOR + 34, class_="axis"))
    return drawing(label, *parts)


def histogram(label: str, edges: Sequence[float], counts: Sequence[int], *, x_title: str, title: str) -> str:
    """Columns between edges."""
    y = scale(list(map(float, counts)), _FLOOR, TOP)
    x = Scale(low=edges[0], high=edges[-1], start=LEFT, end=WIDTH - RIGHT)
    parts = [axis_y(y, number, title)]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        text = tip(f"{percent(low)} to {percent(high)} of the tokens: {count:,} neurons")
        shape = tag(
            "rect", text, x=x(low) + 0.5, y=y(count), width=x(high) - x(low) - 1, height=_FLOOR - y(count), class_="s0"
        )
        parts.append(shape)
    return drawing(label, *parts, axis_x(x, percent, x_title))


def curves(
    label: str, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, x_title: str, title: str,
    x_form: Format = number, y_form: Format = number, log: bool = False, zero: bool = True, ordered: bool = True,
) -> str:  # fmt: skip
    """Lines, each of (name, xs, ys), coloured by their order, or each in a colour of its own."""
    y = scale([v for _, _, ys in lines for v in ys], _FLOOR, TOP, log=log, zero=zero)
    xs_all = [v for _, xs, _ in lines for v in xs]
    x = Scale(
        low=min(xs_all),
        high=max(xs_all) if max(xs_all) > min(xs_all) else min(xs_all) + 1,
        start=LEFT,
        end=WIDTH - RIGHT,
    )
    parts = [axis_y(y, y_form, title)]
    for index, (name, xs, ys) in enumerate(lines):
        path = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in zip(xs, ys, strict=True))
        colour = f"stroke:{blend(index / max(1, len(lines) - 1))}" if ordered else None
        parts.append(
            tag("path", tip(f"{name}: {y_form(ys[-1])} at the end"), d=path, class_=f"line l{index}", style=colour)
        )
    return drawing(label, *parts, axis_x(x, x_form, x_title))


def points(
    label: str, series: Mapping[str, Sequence[Point]], *, x_title: str, title: str, form: Format = percent,
    numbers: bool = False, diagonal: str = "",
) -> str:  # fmt: skip
    """Dots of (x, y, what); with ``numbers`` each is a numbered disc, coloured by its order."""
    every = [point for group in series.values() for point in group]
    x = scale([p[0] for p in every], LEFT, WIDTH - RIGHT)
    least = max(0.0, min((p[1] for p in every), default=0.0) - 0.15)
    y = Scale(low=least, high=1.0, start=_FLOOR, end=TOP)
    parts = [axis_y(y, form, title)]
    if diagonal and x.high > least + 0.02:
        end = min(x.high, 1.0)
        parts.append(tag("line", x1=x(least), y1=y(least), x2=x(end), y2=y(end), class_="reference"))
        parts.append(tag("text", escape(diagonal), x=x(end) - 6, y=y(end) - 7, class_="tick end"))
    for index, group in enumerate(series.values()):
        for place, (a, b, what) in enumerate(group):
            colour = f"fill:{blend(place / max(1, len(group) - 1))}" if numbers else None
            dot = tag("circle", cx=x(a), cy=y(b), r=9.0 if numbers else 4.0, class_=f"dot s{index}", style=colour)
            if numbers:
                dot += tag("text", str(place), x=x(a), y=y(b) + 3.5, class_="inside")
            parts.append(tag("g", tip(what) + dot))
    return drawing(label, *parts, axis_x(x, form, x_title))


def strip(label: str, series: Mapping[str, Sequence[Point]], groups: Sequence[str], *, title: str) -> str:
    """Dots on a logarithmic scale, in named groups side by side; x is the group's number and the place within it."""
    y = scale([p[1] for points_ in series.values() for p in points_], _FLOOR, TOP, log=True)
    step = (WIDE - LEFT - RIGHT) / len(groups)
    parts = [axis_y(y, percent, title, width=WIDE)]
    for index, name in enumerate(groups):
        if index:
            at = LEFT + step * index
            parts.append(tag("line", x1=at, x2=at, y1=TOP, y2=_FLOOR, class_="grid"))
        if index % max(1, -(-len(groups) // 40)) == 0 or index == len(groups) - 1:
            parts.append(tag("text", escape(name), x=LEFT + step * (index + 0.5), y=_FLOOR + 17, class_="tick mid"))
    for index, points_ in enumerate(series.values()):
        for a, b, what in points_:
            at = LEFT + step * a
            parts.append(tag("circle", tip(what), cx=at, cy=y(b), r=3.4, class_=f"dot s{index}"))
    parts.append(tag("line", x1=LEFT, x2=WIDE - RIGHT, y1=_FLOOR, y2=_FLOOR, class_="base"))
    parts.append(tag("text", "layer", x=(LEFT + WIDE - RIGHT) / 2, y=_FLOOR + 34, class_="axis"))
    return drawing(label, *parts, width=WIDE)


def ladder(label: str, rows: Sequence[tuple[str, float, str]], *, reference: float | None, log: bool) -> str:
    """Horizontal bars from ``reference`` (or the axis), each (name, value, text behind it)."""
    name_width, tail, row = 320.0, 130.0, 28.0
    values = [value for _, value, _ in rows]
    x = scale(values, name_width, WIDE - tail, log=log)
    height = row * len(rows) + 12
    parts = []
    origin = name_width
    if reference is not None:
        at = x(reference)
        parts.append(tag("line", x1=at, x2=at, y1=2.0, y2=height - 6, class_="reference"))
        origin = at if log else origin
    for index, (name, value, text) in enumerate(rows):
        middle = 6 + row * (index + 0.5)
        end = x(value)
        left, wide = min(origin, end), abs(end - origin)
        parts.append(tag("text", escape(name), x=name_width - 12, y=middle + 4, class_="row end"))
        parts.append(
            tag(
                "rect",
                tip(f"{name}: {text}"),
                x=left,
                y=middle - 7,
                width=max(wide, 2.0),
                height=14.0,
                rx=3,
                class_="s0",
            )
        )
        parts.append(tag("text", escape(text), x=max(end, origin) + 8, y=middle + 4, class_="row"))
    return drawing(label, *parts, width=WIDE, height=height)


def heat(label: str, rows: Sequence[Sequence[float]], *, title: str, form: Format = percent) -> str:
    """A cell for each layer (down) and expert (across), darker for more."""
    most = max((value for row in rows for value in row), default=1.0) or 1.0
    wide = (WIDTH - LEFT - RIGHT) / max(map(len, rows))
    tall = min(56.0, max(10.0, 170 / len(rows)))
    parts = []
    for layer, row in enumerate(rows):
        at = TOP + tall * layer
        parts.append(tag("text", str(layer), x=LEFT - 7, y=at + tall / 2 + 4, class_="tick end"))
        for expert, value in enumerate(row):
            text = tip(f"layer {layer}, expert {expert}: {form(value)}")
            style = f"fill:color-mix(in oklab, var(--s0) {12 + 88 * value / most:.0f}%, var(--card))"
            cell = tag("rect", x=LEFT + wide * expert + 1, y=at + 1, width=wide - 2, height=tall - 2, rx=3, style=style)
            if wide > 44 and tall > 17:
                shade = "inside" if value / most > 0.55 else "mid"
                cell += tag("text", form(value), x=LEFT + wide * (expert + 0.5), y=at + tall / 2 + 4, class_=shade)
            parts.append(tag("g", text + cell))
    bottom = TOP + tall * len(rows)
    every = max(1, -(-max(map(len, rows)) // 24))
    parts += [
        tag("text", str(expert), x=LEFT + wide * (expert + 0.5), y=bottom + 16, class_="tick mid")
        for expert in range(0, max(map(len, rows)), every)
    ]
    parts.append(tag("text", title, x=(LEFT + WIDTH - RIGHT) / 2, y=bottom + 33, class_="axis"))
    parts.append(tag("text", "layer", x=0, y=10, class_="tick"))
    return drawing(label, *parts, height=bottom + 40)


def stacked(label: str, rows: Sequence[tuple[str, Mapping[str, int], str]], kinds: Sequence[str]) -> str:
    """Horizontal bars of parts; rows of (name, bytes by kind, text behind it)."""
    name_width, tail, row = 200.0, 100.0, 32.0
    most = max((sum(parts.values()) for _, parts, _ in rows), default=1) or 1
    unit = (WIDE - name_width - tail) / most
    drawn = []
    for index, (name, parts, text) in enumerate(rows):
        middle, at = 6 + row * (index + 0.5), name_width
        drawn.append(tag("text", escape(name), x=name_width - 12, y=middle + 4, class_="row end"))
        for kind, size in parts.items():
            said = tip(f"{name}: {kind}, {size / 1e6:,.2f} MB")
            drawn.append(
                tag(
                    "rect",
                    said,
                    x=at,
                    y=middle - 9,
                    width=max(size * unit, 0.5),
                    height=18.0,
                    class_=f"s{kinds.index(kind) % 6}",
                )
            )
            at += size * unit
        drawn.append(tag("text", escape(text), x=at + 8, y=middle + 4, class_="row"))
    return drawing(label, *drawn, width=WIDE, height=row * len(rows) + 12)
