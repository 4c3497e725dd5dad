"""The pictures of docs/idea.md, drawn from what the library does: `python docs/_ext/pictures.py` writes them again.

They are SVG without a background, in colors that can be read on white and on black.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import novoclip

FOLDER = Path(__file__).parents[1] / "_static"
INK, FAINT = "#7d8590", "#7d859055"
COLORS = ("#3b82c4", "#d97706", "#2a9d5c", "#9b6dd0", "#d1495b", "#0f9ba8", "#8a7a2f")
SHAPES = ("hard", "tanh", "arctan", "algebraic", "smooth", "normalize", "drop")


class Axes(NamedTuple):
    """A plot from (left, top) to (right, bottom) in pixels, and the values at its sides."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixels of a point."""
        low, high = (np.log10(self.y) if self.log else self.y)[:2]
        height = np.log10(y) if self.log else y
        return (
            self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left),
            self.bottom - (height - low) / (high - low) * (self.bottom - self.top),
        )

    def curve(self, xs: Sequence[float], ys: Sequence[float], color: str, style: str = "") -> str:
        """Return a line through points."""
        points = " ".join("{:.2f},{:.2f}".format(*self.place(x, y)) for x, y in zip(xs, ys, strict=True))
        return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2" {style}/>'

    def frame(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_title: str, y_title: str) -> list[str]:
        """Return lines and words at the sides."""
        parts = []
        for tick in y_ticks:
            _, y = self.place(self.x[0], tick)
            parts += [line(self.left, y, self.right, y, FAINT), word(self.left - 6, y + 4, f"{tick:g}", "end")]
        for tick in x_ticks:
            x, _ = self.place(tick, self.y[0])
            parts.append(word(x, self.bottom + 17, f"{tick:g}", "middle"))
        middle = (self.left + self.right) / 2
        return [*parts, word(middle, self.bottom + 36, x_title, "middle"), word(self.left - 30, self.top - 12, y_title)]


def line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def word(x: float, y: float, text: str, anchor: str = "start", color: str = INK) -> str:
    """Return a word."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Return a whole SVG."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="13" role="img">\n<title>{title}</title>\n{body}\n</svg>\n'
    )


def legend(names: Sequence[str], x: float, y: float) -> list[str]:
    """Return names below each other, each in its color."""
    return [word(x, y + 20 * place, name, color=COLORS[place]) for place, name in enumerate(names)]


def shapes() -> str:
    """Draw the norm after a clip at 1, as a function of the norm before, for each shape."""
    norms = np.linspace(0, 4, 401)
    axes = Axes(44, 30, 370, 240, (0, 4), (0, 1.2))
    parts = axes.frame(range(5), (0, 0.5, 1), "norm before, in limits", "norm after")
    for name, color in zip(SHAPES, COLORS, strict=True):
        rule = novoclip.clip_by_norm(1.0, per="element", shape=name)
        after, _ = rule.update(jnp.asarray(norms, jnp.float32), rule.init(jnp.zeros(401)))
        # Shapes that lie on "hard" for a part of the way are dashed, so that it can be seen.
        style = 'stroke-dasharray="6 5"' if name in {"normalize", "drop"} else ""
        parts.append(axes.curve(norms, np.asarray(after, float), color, style))
    return picture(480, 284, "Norms after a clip at 1, for each shape", [*parts, *legend(SHAPES, 385, 60)])


def measures() -> str:
    """Draw the elements of two tensors before and after a clip at 1, for each granularity."""
    before = {"kernel": jnp.array([[0.3, 2.0], [0.4, 1.5], [0.2, 0.6]]), "bias": jnp.array([0.5, 0.7])}
    parts = []
    for place, per in enumerate(("tree", "tensor", "unit", "element")):
        rule = novoclip.clip_by_norm(1.0, per=per)
        after, _ = rule.update(before, rule.init(before))
        axes = Axes(84, 26 + 84 * place, 470, 80 + 84 * place, (0, 9), (0, 2))
        parts += [line(axes.left, axes.bottom, axes.right, axes.bottom, FAINT), word(4, axes.bottom - 16, per)]
        # Elements of one output unit of the kernel stand together.
        for number, (old, new) in enumerate(zip(*(_in_order(tree) for tree in (before, after)), strict=True)):
            slot = number + (number >= 3) * 0.2 + (number >= 6) * 0.6
            parts += [_bar(axes, slot, old, "none", INK), _bar(axes, slot, new, COLORS[0], "none")]
    at = 380
    parts += [word(140, at, "kernel, unit 1", "middle"), word(270, at, "kernel, unit 2", "middle")]
    parts += [word(412, at, "bias", "middle")]
    return picture(480, 390, "Elements before and after a clip at 1, for each granularity", parts)


def _in_order(tree: dict[str, jax.Array]) -> list[float]:
    return [*np.asarray(tree["kernel"], float).T.ravel(), *np.asarray(tree["bias"], float)]


def _bar(axes: Axes, slot: float, height: float, fill: str, stroke: str) -> str:
    (left, top), (right, bottom) = axes.place(slot + 0.15, height), axes.place(slot + 0.85, 0)
    size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
    return f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{fill}" stroke="{stroke}"/>'


RULES = {
    "constant(1.5)": novoclip.limits.constant(1.5),
    "autoclip(90.0)": novoclip.limits.autoclip(90.0, window=50),
    "running_mean(2.0)": novoclip.limits.running_mean(2.0),
    "zclip()": novoclip.limits.zclip(),
}


def record() -> np.ndarray:
    """Return norms of 160 steps: they fall, have one spike, and rise to a new level."""
    steps = np.arange(160)
    level = 0.7 + 2.3 * np.exp(-steps / 15) + np.where(steps >= 110, 0.9, 0)
    norms = level * np.exp(np.random.default_rng(0).normal(0, 0.12, 160))
    norms[70] = 30.0
    return norms


def limits_of(limit: novoclip.Limit, norms: np.ndarray) -> np.ndarray:
    """Return the limit of each step."""
    rule = novoclip.clip_by_limit("tree", limit)

    def step(state: novoclip.ClipState, norm: jax.Array) -> tuple[novoclip.ClipState, jax.Array]:
        _, state = rule.update(norm, state)
        return state, state.limits

    _, found = jax.lax.scan(step, rule.init(jnp.float32(0)), jnp.asarray(norms, jnp.float32))
    return np.asarray(found, float)


def limits() -> str:
    """Draw the limits of four rules on one record."""
    norms = record()
    axes = Axes(44, 30, 460, 250, (0, 160), (0.4, 40), log=True)
    parts = axes.frame((0, 40, 80, 120, 160), (0.5, 1, 2, 5, 10, 20), "step", "norm, limit")
    parts.append(axes.curve(range(160), norms, INK, 'stroke-opacity="0.6"'))
    for color, limit in zip(COLORS, RULES.values(), strict=False):
        found = limits_of(limit, norms)
        shown = np.isfinite(found)
        parts.append(axes.curve(np.arange(160)[shown], np.minimum(found[shown], 40), color))
    return picture(480, 294, "Limits of four rules on one record of norms", [*parts, *legend(tuple(RULES), 330, 48)])


def main() -> None:
    """Write the pictures."""
    for draw in (shapes, measures, limits):
        (FOLDER / f"idea_{draw.__name__}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
