"""Gradient clipping for JAX: clipping rules, guards and optimizers as Optax transforms that show what they did.

Start with `protect(optimizer)`, which needs no threshold, and `metrics(opt_state)`, which shows what was done.
Functions that Optax has too have its parameters and defaults. Limits are in `novoclip.limits`, state classes in
`novoclip.states`, the types that signatures name in `novoclip.typing`, checks of transforms in `novoclip.testing`.
"""

import difflib
import importlib.metadata
from typing import NoReturn

import optax

from novoclip import limits, states, typing
from novoclip.clip_state import ClipState
from novoclip.clipping import clip_by_limit
from novoclip.granularity import elements, groups, resolve_measure, tensors, units
from novoclip.guards.locate import locate_nonfinite
from novoclip.guards.nonfinite import guard_nonfinite
from novoclip.guards.protect import protect
from novoclip.guards.spikes import skip_spikes
from novoclip.guards.stop import TrainingStoppedError, check
from novoclip.limit import Limit
from novoclip.measure import Measure
from novoclip.optimizers.acclip import acclip, scale_by_acclip
from novoclip.optimizers.adagrad import adagrad, scale_by_rss
from novoclip.optimizers.adam import adam, scale_by_adam
from novoclip.optimizers.adamw import adamw
from novoclip.optimizers.adopt import adopt, scale_by_adopt
from novoclip.optimizers.algorithm import OptimizerState
from novoclip.optimizers.amsgrad import amsgrad, scale_by_amsgrad
from novoclip.optimizers.clippy_adagrad import clippy_adagrad
from novoclip.optimizers.lamb import lamb
from novoclip.optimizers.lars import lars
from novoclip.optimizers.momentum import momentum, trace
from novoclip.optimizers.novoclip import novoclip, scale_by_novoclip
from novoclip.optimizers.novograd import novograd, scale_by_novograd
from novoclip.optimizers.nsgd import nsgd, scale_by_nsgd
from novoclip.optimizers.rms import scale_by_rms, scale_by_stddev
from novoclip.optimizers.rmsprop import rmsprop
from novoclip.optimizers.sgd import sgd
from novoclip.optimizers.spam import scale_by_spam, spam
from novoclip.optimizers.stable_adamw import scale_by_stable_adamw, stable_adamw
from novoclip.precision.loss_scale import loss_scaling, scale_of
from novoclip.precision.master_weights import master_weights, weights_of
from novoclip.precision.stochastic import stochastic_rounding, stochastically_rounded
from novoclip.presets import novograd_preset
from novoclip.replays.replay import replay
from novoclip.rules.adagc import adagc
from novoclip.rules.adaptive_grad_clip import adaptive_grad_clip
from novoclip.rules.agc import agc
from novoclip.rules.autoclip import autoclip
from novoclip.rules.band import clip_to_band, delta_gclip
from novoclip.rules.centralize import centralize
from novoclip.rules.clippy import clippy
from novoclip.rules.deviation import clip_by_deviation
from novoclip.rules.norm import clip_by_block_rms, clip_by_global_norm, clip_by_norm
from novoclip.rules.normalized import normalize_by_norm
from novoclip.rules.qk import qk_clip
from novoclip.rules.record import record
from novoclip.rules.running_mean import clip_by_running_mean
from novoclip.rules.running_quantile import clip_by_running_quantile
from novoclip.rules.scale_by_trust_ratio import scale_by_trust_ratio
from novoclip.rules.second_moment import clip_by_second_moment
from novoclip.rules.spectral import clip_by_spectral_norm, singular_values
from novoclip.rules.stable_spam import adaclip, adagn
from novoclip.rules.trust_ratio import clip_by_trust_ratio
from novoclip.rules.value import clip, clip_by_value
from novoclip.rules.zclip import zclip
from novoclip.schedules import batch_damped, batch_scaled, inverse_time_decay, untuned_warmup
from novoclip.state_bytes import state_bytes
from novoclip.telemetry import metrics
from novoclip.upgrade import upgrade_state
from novoclip.wrappers.carry import clip21, uclip
from novoclip.wrappers.delay import start_after
from novoclip.wrappers.examples import per_example
from novoclip.wrappers.histograms import histograms
from novoclip.wrappers.shards import across_shards
from novoclip.wrappers.watch import watch
from novoclip.writers import writer

__version__ = importlib.metadata.version("novoclip")

__all__ = [
    "ClipState",
    "Limit",
    "Measure",
    "OptimizerState",
    "TrainingStoppedError",
    "acclip",
    "across_shards",
    "adaclip",
    "adagc",
    "adagn",
    "adagrad",
    "adam",
    "adamw",
    "adaptive_grad_clip",
    "adopt",
    "agc",
    "amsgrad",
    "autoclip",
    "batch_damped",
    "batch_scaled",
    "centralize",
    "check",
    "clip",
    "clip21",
    "clip_by_block_rms",
    "clip_by_deviation",
    "clip_by_global_norm",
    "clip_by_limit",
    "clip_by_norm",
    "clip_by_running_mean",
    "clip_by_running_quantile",
    "clip_by_second_moment",
    "clip_by_spectral_norm",
    "clip_by_trust_ratio",
    "clip_by_value",
    "clip_to_band",
    "clippy",
    "clippy_adagrad",
    "delta_gclip",
    "elements",
    "groups",
    "guard_nonfinite",
    "histograms",
    "inverse_time_decay",
    "lamb",
    "lars",
    "limits",
    "locate_nonfinite",
    "loss_scaling",
    "master_weights",
    "metrics",
    "momentum",
    "normalize_by_norm",
    "novoclip",
    "novograd",
    "novograd_preset",
    "nsgd",
    "per_example",
    "protect",
    "qk_clip",
    "record",
    "replay",
    "resolve_measure",
    "rmsprop",
    "scale_by_acclip",
    "scale_by_adam",
    "scale_by_adopt",
    "scale_by_amsgrad",
    "scale_by_novoclip",
    "scale_by_novograd",
    "scale_by_nsgd",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_spam",
    "scale_by_stable_adamw",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "scale_of",
    "sgd",
    "singular_values",
    "skip_spikes",
    "spam",
    "stable_adamw",
    "start_after",
    "state_bytes",
    "states",
    "stochastic_rounding",
    "stochastically_rounded",
    "tensors",
    "trace",
    "typing",
    "uclip",
    "units",
    "untuned_warmup",
    "upgrade_state",
    "watch",
    "weights_of",
    "writer",
    "zclip",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]


# Names of 0.1.0 that are gone, and what to write instead. Others have moved to `limits` and `states`, by the same name.
_RENAMED = {
    "deviations_of_history": "limits.deviation",
    "percentile_of_history": "limits.autoclip",
    "scale_by_adagrad": "scale_by_rss",
    "scale_by_momentum": "trace",
    "scale_by_rmsprop": "scale_by_rms",
    "share_of_parameters": "limits.agc",
    "ZScoreMemory": "states.ZClipState",
    "z_score": "limits.zclip",
}


def _hint(name: str) -> str:
    if name in _RENAMED:
        return f"write novoclip.{_RENAMED[name]}"
    for part, own in ((limits, name), (states, name.replace("Memory", "State"))):
        if own in part.__all__:
            return f"write {part.__name__}.{own}"
    if hasattr(optax, name):
        return f"only Optax has it: write optax.{name}"
    near = difflib.get_close_matches(name, __all__, 1)
    return f"did you mean novoclip.{near[0]}?" if near else "see dir(novoclip)"


def __getattr__(name: str) -> NoReturn:
    hint = "" if name.startswith("_") else f"; {_hint(name)}"
    msg = f"module 'novoclip' has no attribute {name!r}{hint}"
    raise AttributeError(msg)
