"""The rules and guards that a replay tries, each with a small grid of arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import optax

from novoclip import limits
from novoclip.guards.protect import protect
from novoclip.guards.spikes import skip_spikes
from novoclip.records import Record
from novoclip.replays.judge import Rows
from novoclip.rules.adagc import adagc
from novoclip.rules.autoclip import autoclip
from novoclip.rules.deviation import clip_by_deviation
from novoclip.rules.norm import clip_by_global_norm, clip_by_norm
from novoclip.rules.running_mean import clip_by_running_mean
from novoclip.rules.running_quantile import clip_by_running_quantile
from novoclip.rules.zclip import zclip


class Candidate(NamedTuple):
    """A transform that is tried.

    Attributes:
      line: what one writes in Python.
      rule: returns the transform, given the number if there is one.
      number: the argument that varies in a grid. Candidates with one rule are compiled together.
      guard: whether it wraps the optimizer.
      tensors: whether it acts on each tensor, and so needs recorded norms of tensors.
    """

    line: str
    rule: Callable[..., optax.GradientTransformation]
    number: float | None = None
    guard: bool = False
    tensors: bool = False


def _protect() -> optax.GradientTransformation:
    return protect(optax.identity())


def _protect_tighter() -> optax.GradientTransformation:
    return protect(optax.identity(), clip=limits.running_mean(2.0))


def _skip_spikes() -> optax.GradientTransformation:
    return skip_spikes(optax.identity())


# The same functions in each call, so that what was compiled for one record serves the next one with as many rows.
GUARDS = (
    Candidate("novoclip.protect(optimizer)", _protect, guard=True),
    Candidate("novoclip.protect(optimizer, clip=novoclip.limits.running_mean(2.0))", _protect_tighter, guard=True),
    Candidate("novoclip.skip_spikes(optimizer)", _skip_spikes, guard=True),
)
DEVIATION = functools.partial(clip_by_deviation, warmup=8)
MEAN_OF_TENSOR = functools.partial(clip_by_running_mean, per="tensor")
AUTOCLIP_OF_TENSOR = functools.partial(autoclip, per="tensor")


def candidates(record: Record, rows: Rows) -> list[Candidate]:
    """Return what is tried on a record, in the order in which equals are preferred."""
    found = [
        *GUARDS,
        *_grid("clip_by_running_mean({})", clip_by_running_mean, (2.0, 2.5, 3.0)),
        *_grid("zclip({})", zclip, (2.5, 4.0, 6.0)),
        *_grid("clip_by_deviation({}, warmup=8)", DEVIATION, (3.0, 6.0)),
        *_grid("autoclip({})", autoclip, (90.0, 95.0, 99.0)),
        *_grid("clip_by_running_quantile({})", clip_by_running_quantile, (0.9, 0.95, 0.99)),
        *_grid("clip_by_global_norm({})", clip_by_global_norm, thresholds(record.norms[rows.calm])),
    ]
    if len(record.tensors) > 1:
        every = np.concatenate([norms[np.isfinite(norms)] for norms in record.tensors.values()])
        found += [
            Candidate("novoclip.adagc()", adagc, tensors=True),
            *_grid('clip_by_running_mean({}, per="tensor")', MEAN_OF_TENSOR, (2.0, 3.0), tensors=True),
            *_grid('autoclip({}, per="tensor")', AUTOCLIP_OF_TENSOR, (95.0,), tensors=True),
            *_grid("clip_by_norm({})", clip_by_norm, thresholds(every), tensors=True),
        ]
    return found


def thresholds(calm: np.ndarray) -> list[float]:
    """Return fixed limits worth a try, of two digits: 1.0, and multiples of what calm norms reach."""
    usual = calm[calm > 0]
    if not usual.size:
        return [1.0]
    high = float(np.quantile(usual, 0.99))
    return sorted({1.0, *(_two_digits(factor * high) for factor in (1.0, 1.5, 2.0, 3.0))})


def _two_digits(number: float) -> float:
    return float(f"{number:.1e}") if math.isfinite(number) else number


def _grid(line: str, rule: Callable[..., Any], numbers: Sequence[float], *, tensors: bool = False) -> list[Candidate]:
    return [Candidate(f"novoclip.{line.format(number)}", rule, number, tensors=tensors) for number in numbers]
