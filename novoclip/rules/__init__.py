"""Clipping rules, one file a rule or a family."""

from novoclip.rules.adagc import AdaGCState, adagc
from novoclip.rules.agc import agc, share_of_parameters
from novoclip.rules.autoclip import autoclip, percentile_of_history
from novoclip.rules.band import clip_to_band, delta_gclip
from novoclip.rules.centralize import centralize
from novoclip.rules.clippy import clippy
from novoclip.rules.deviation import clip_by_deviation, deviations_of_history
from novoclip.rules.history import HistoryState
from novoclip.rules.norm import clip_by_global_norm, clip_by_norm
from novoclip.rules.normalized import normalize_by_norm
from novoclip.rules.qk import qk_clip
from novoclip.rules.record import record
from novoclip.rules.running_mean import RunningMeanState, clip_by_running_mean, running_mean
from novoclip.rules.running_quantile import (
    ArithmeticQuantileState,
    QuantileState,
    clip_by_running_quantile,
    running_quantile,
)
from novoclip.rules.second_moment import SecondMomentState, clip_by_second_moment, second_moment
from novoclip.rules.spectral import clip_by_spectral_norm, singular_values
from novoclip.rules.stable_spam import AverageState, RootRatioState, adaclip, adagn
from novoclip.rules.trust_ratio import clip_by_trust_ratio, trust_ratio
from novoclip.rules.value import clip_by_value
from novoclip.rules.zclip import ZScoreState, z_score, zclip

__all__ = [
    "AdaGCState",
    "ArithmeticQuantileState",
    "AverageState",
    "HistoryState",
    "QuantileState",
    "RootRatioState",
    "RunningMeanState",
    "SecondMomentState",
    "ZScoreState",
    "adaclip",
    "adagc",
    "adagn",
    "agc",
    "autoclip",
    "centralize",
    "clip_by_deviation",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_running_mean",
    "clip_by_running_quantile",
    "clip_by_second_moment",
    "clip_by_spectral_norm",
    "clip_by_trust_ratio",
    "clip_by_value",
    "clip_to_band",
    "clippy",
    "delta_gclip",
    "deviations_of_history",
    "normalize_by_norm",
    "percentile_of_history",
    "qk_clip",
    "record",
    "running_mean",
    "running_quantile",
    "second_moment",
    "share_of_parameters",
    "singular_values",
    "trust_ratio",
    "z_score",
    "zclip",
]
