"""Clipping rules, one file a rule or a family."""

from novoclip.rules.autoclip import PercentileMemory, autoclip, percentile_of_history
from novoclip.rules.norm import clip_by_global_norm, clip_by_norm
from novoclip.rules.normalized import normalize_by_norm
from novoclip.rules.second_moment import SecondMomentMemory, clip_by_second_moment, second_moment
from novoclip.rules.value import clip_by_value
from novoclip.rules.zclip import ZScoreMemory, z_score, zclip

__all__ = [
    "PercentileMemory",
    "SecondMomentMemory",
    "ZScoreMemory",
    "autoclip",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_second_moment",
    "clip_by_value",
    "normalize_by_norm",
    "percentile_of_history",
    "second_moment",
    "z_score",
    "zclip",
]
