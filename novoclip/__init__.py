"""Gradient clipping for JAX: every rule an Optax transform that tells what it did."""

from novoclip.clipping import ClipState, clip
from novoclip.limits import Limit, constant
from novoclip.measure import Measure, groups, resolve_measure, units
from novoclip.rules import (
    PercentileMemory,
    SecondMomentMemory,
    ZScoreMemory,
    autoclip,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_second_moment,
    clip_by_value,
    normalize_by_norm,
    percentile_of_history,
    second_moment,
    z_score,
    zclip,
)
from novoclip.telemetry import metrics, record

__all__ = [
    "ClipState",
    "Limit",
    "Measure",
    "PercentileMemory",
    "SecondMomentMemory",
    "ZScoreMemory",
    "autoclip",
    "clip",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_second_moment",
    "clip_by_value",
    "constant",
    "groups",
    "metrics",
    "normalize_by_norm",
    "percentile_of_history",
    "record",
    "resolve_measure",
    "second_moment",
    "units",
    "z_score",
    "zclip",
]
