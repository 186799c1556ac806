"""Building SVG as escaped text: every attribute and every text is escaped on the way in."""

from markupsafe import Markup, escape

Attribute = str | float | int | None

FONT_SIZE = 12.0
"""Of texts in charts, in user units; a chart is drawn near its natural size, so these are about pixels."""


def tag(name: str, *children: str | Markup, **attributes: Attribute) -> Markup:
    """One element. `class_` stands for class, `_` in names for `-`; attributes that are None are left out.

    >>> tag("text", "a < b", x=1.234567, class_="tick")
    Markup('<text x="1.23" class="tick">a &lt; b</text>')
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    content = Markup("").join(children)
    return Markup(f"<{name}{written}>{content}</{name}>")


def group(*children: Markup, **attributes: Attribute) -> Markup:
    return tag("g", *children, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, words: str, class_: str = "label", anchor: str = "start") -> Markup:
    return tag("text", words, x=x, y=y, class_=class_, text_anchor=None if anchor == "start" else anchor)


def path(points: list[tuple[float, float]], class_: str, **attributes: Attribute) -> Markup:
    """A line through the points."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", d=f"M{steps}" if steps else "", class_=class_, **attributes)


def title(words: str) -> Markup:
    """What a pointer over the parent element is told; the page's script shows it as a tooltip."""
    return tag("title", words)


def canvas(width: float, height: float, label: str, *children: Markup, class_: str = "chart") -> Markup:
    """The `<svg>` itself, scaled to its container; `label` is what a screen reader says."""
    return tag(
        "svg",
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        class_=class_,
    )


def text_width(words: str, size: float = FONT_SIZE, bold: bool = False) -> float:
    """A cautious estimate of how wide a text is, for the wider ones among proportional sans-serifs."""
    narrow = sum(character in "iljtfrI.,:;'|!() " for character in words)
    wide = sum(character in "mwMW%—" for character in words)
    return size * (0.63 * len(words) - 0.24 * narrow + 0.3 * wide) * (1.09 if bold else 1.0)


def shorten(words: str, length: int) -> str:
    """Cuts the middle out of what is too long, since both ends of a name tell it from others."""
    if len(words) <= length:
        return words
    head = (length - 1) // 2
    return f"{words[:head]}…{words[len(words) - (length - 1 - head) :]}"


def _number(value: str | float | int) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
