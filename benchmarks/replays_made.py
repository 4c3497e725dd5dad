"""Made records of gradient norms, each with planted spikes, to judge what `novoclip.replay` recommends by.

Which rows are spikes is known here, since they were planted: nothing of `novoclip.replays.judge` is used. The level of
a row is the value that its noise is multiplied by. `python benchmarks/replays.py --made` prints the table.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import numpy as np

HARMLESS = 3.3  # levels: a planted spike below this needs no clip, and one that is let through below is caught
UNJUDGED = 8  # rows at the start, in which no rule has seen enough


class Made(NamedTuple):
    """A made record.

    Attributes:
      name: what is difficult in it.
      steps: the step of each row.
      norms: the norms.
      levels: the true level of each row.
      spikes: which rows are planted spikes that are at least 3.3 levels, from row 8 on.
      calm: which finite rows from row 8 on are nothing planted.
    """

    name: str
    steps: np.ndarray
    norms: np.ndarray
    levels: np.ndarray
    spikes: np.ndarray
    calm: np.ndarray


Level = Callable[[np.ndarray], np.ndarray]
Shape = Callable[..., Made]


def _flat(t: np.ndarray) -> np.ndarray:
    return np.ones(t.size)


def _cycles(t: np.ndarray, length: int, low: float) -> np.ndarray:
    """Return levels that begin at 1 after each restart and fall to `low`, as a cosine does."""
    return low + (1 - low) * (1 + np.cos(np.pi * (t % length) / length)) / 2


def _shape(
    name: str,
    level: Level = _flat,
    *,
    seed: int = 0,
    rows: int = 600,
    noise: float = 0.15,
    spikes: int = 12,
    burst: int = 1,
    factors: tuple[float, float] = (8.0, 1000.0),
    every: int = 1,
    change: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
) -> Made:
    """Return a record: level times lognormal noise, with spikes at random places, then `change`.

    Args:
      name: what is difficult.
      seed: of the noise and the places of the spikes.
      level: the level as a function of the time, which runs from 0 to `rows`.
      rows: the number of rows.
      noise: the standard deviation of the logarithm of the norms.
      spikes: the number of spikes, or of bursts.
      burst: rows of each burst.
      factors: the smallest and the largest factor of a spike, which are drawn uniformly in the logarithm.
      every: steps between two rows.
      change: changes the norms after all, such as to NaN.
    """
    generator = np.random.default_rng([seed, sum(map(ord, name))])
    t = np.arange(rows)
    levels = np.asarray(level(t), float)
    norms = levels * np.exp(noise * generator.normal(size=rows))
    # Bursts have at least as many calm rows between them as they have rows, and 8.
    gap = burst + max(burst, UNJUDGED)
    places = 2 * UNJUDGED + gap * np.arange((rows - 2 * UNJUDGED - burst) // gap + 1)
    starts = np.sort(generator.choice(places, min(spikes, places.size), replace=False))
    planted = np.zeros(rows, bool)
    for start in starts:
        planted[start : start + burst] = True
    norms[planted] *= np.exp(generator.uniform(*np.log(factors), planted.sum()))
    if change is not None:
        norms = change(norms, generator)
    late, finite = t >= UNJUDGED, np.isfinite(norms)
    spike = planted & late & finite & (norms >= HARMLESS * levels)
    return Made(name, t * every, norms, levels, spike, late & finite & ~planted & (norms > 0))


def _nan(fraction: float, value: float = np.nan) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda norms, generator: np.where(generator.random(norms.size) < fraction, value, norms)


def _mixture(norms: np.ndarray, generator: np.random.Generator, low: float, fraction: float) -> np.ndarray:
    """Return the norms with a fraction of the rows of a second task, whose level is `low` times as high."""
    return np.where(generator.random(norms.size) < fraction, low * norms, norms)


def made(seed: int = 0) -> list[Made]:
    """Return all made records."""
    shape = functools.partial(_shape, seed=seed)
    return [record for kind in (_noises, _levels, _spikes, _logs, _tasks, _hopeless) for record in kind(shape)]


def _noises(shape: Shape) -> list[Made]:
    return [shape(f"lognormal noise of {noise}", noise=noise) for noise in (0.05, 0.1, 0.2, 0.3, 0.45, 0.6)]


def _levels(shape: Shape) -> list[Made]:
    return [
        shape("slow decay by 10", lambda t: 10.0 ** (-t / 600)),
        shape("decay as 1/t, by 100", lambda t: 1 / (1 + t / 6)),
        shape("falls by 30 over the first 30 rows", lambda t: 0.1 + 3 * np.exp(-t / 9)),
        shape("warm-up: rises by 20 over 50 rows", lambda t: 20.0 ** np.clip(t / 50, 0, 1)),
        shape("warm-up: rises by 10 over 200 rows", lambda t: 10.0 ** np.clip(t / 200, 0, 1)),
        shape("level rises by 3 at once", lambda t: np.where(t < 300, 1.0, 3.0)),
        shape("level rises by 10 at once", lambda t: np.where(t < 300, 1.0, 10.0)),
        shape("level falls by 5 at once", lambda t: np.where(t < 300, 5.0, 1.0)),
        shape("level jumps up and down by 4", lambda t: np.where((t // 150) % 2, 4.0, 1.0)),
        shape("restarts of the learning rate, by 3", lambda t: _cycles(t, 150, 1 / 3)),
        shape("restarts of the learning rate, by 10", lambda t: _cycles(t, 150, 0.1)),
        shape("epochs of 50 rows, a sine of 1 to 3", lambda t: 2 + np.sin(2 * np.pi * t / 50)),
        shape("epochs of 100 rows, a sawtooth of 1 to 2", lambda t: 2 - (t % 100) / 100),
        shape("drifts upward by 10", lambda t: 10.0 ** (t / 600)),
        shape("drifts upward by 100", lambda t: 100.0 ** (t / 600)),
    ]


def _spikes(shape: Shape) -> list[Made]:
    return [
        shape("no spikes", spikes=0),
        shape("spikes of 3 to 6", factors=(3.0, 6.0)),
        shape("spikes of 5 to 10", factors=(5.0, 10.0)),
        shape("spikes of 5 to 10, noise 0.3", factors=(5.0, 10.0), noise=0.3),
        shape("spikes of 1000", factors=(999.0, 1001.0)),
        shape("bursts of 3 spikes", burst=3),
        shape("bursts of 8 spikes", burst=8, spikes=6),
        shape("bursts of 20 spikes", burst=20, spikes=3),
        shape("bursts of 20 spikes of 5 to 10", burst=20, spikes=3, factors=(5.0, 10.0)),
        shape("spikes in 5 % of the rows", spikes=30),
        shape("spikes in 10 % of the rows", spikes=60),
    ]


def _logs(shape: Shape) -> list[Made]:
    return [
        shape("60 rows", rows=60, spikes=2),
        shape("80 rows", rows=80, spikes=3),
        shape("150 rows", rows=150, spikes=5),
        shape("300 rows", rows=300, spikes=6),
        shape("NaN in 2 % of the rows", change=_nan(0.02)),
        shape("NaN in 20 % of the rows", change=_nan(0.2)),
        shape("infinity in 3 % of the rows", change=_nan(0.03, np.inf)),
        shape("zeros in 10 % of the rows", change=_nan(0.1, 0.0)),
        shape("every 10th step, warm-up over 6 rows", lambda t: 8.0 ** np.clip(t / 6, 0, 1), rows=300, every=10),
        shape("every 50th step, falls by 8 over 15 rows", lambda t: 1 + 7 * np.exp(-t / 5), rows=150, every=50),
    ]


def _tasks(shape: Shape) -> list[Made]:
    return [
        shape("two tasks of levels 1 and 2, half each", change=lambda n, g: _mixture(n, g, 0.5, 0.5)),
        shape("two tasks of levels 1 and 3, half each", change=lambda n, g: _mixture(n, g, 1 / 3, 0.5)),
        shape("two tasks of levels 1 and 6, half each", change=lambda n, g: _mixture(n, g, 1 / 6, 0.5)),
        shape("a tenth of the rows at 3 levels", change=lambda n, g: _mixture(n, g, 1 / 3, 0.9)),
        shape("a tenth of the rows at 6 levels", change=lambda n, g: _mixture(n, g, 1 / 6, 0.9)),
    ]


def _hopeless(shape: Shape) -> list[Made]:
    return [
        shape("lognormal noise of 1.5", noise=1.5),
        shape("diverges over the last 60 rows", lambda t: 10.0 ** np.clip((t - 540) / 8, 0, None)),
        shape("NaN from row 500 on", change=lambda n, g: np.where(np.arange(n.size) < 500, n, np.nan)),
        shape("zeros in 60 % of the rows", change=_nan(0.6, 0.0)),
        shape("clipped at 1.2", change=lambda n, g: np.minimum(n, 1.2)),
    ]
