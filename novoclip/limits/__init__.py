"""Limits: the largest norm of each block at each step, for `novoclip.clip_by_limit` and `novoclip.skip_spikes`.

A Limit has the name of its rule without `clip_by_`. For example, `novoclip.autoclip(90.0)` is the same as
`novoclip.clip_by_limit("tree", novoclip.limits.autoclip(90.0))`.

| Limit | rule |
|---|---|
| `limits.constant` | `clip`, `clip_by_norm`, `clip_by_global_norm`, `clip_by_block_rms` |
| `limits.autoclip` | `autoclip` |
| `limits.running_quantile` | `clip_by_running_quantile` |
| `limits.deviation` | `clip_by_deviation` |
| `limits.zclip` | `zclip` |
| `limits.running_mean` | `clip_by_running_mean` |
| `limits.second_moment` | `clip_by_second_moment` |
| `limits.agc` | `agc`, `adaptive_grad_clip` |
| `limits.trust_ratio` | `clip_by_trust_ratio` |
| `limits.tighter` | none: the smallest of several Limits |
"""

from novoclip.limit import Limit
from novoclip.limits.agc import agc
from novoclip.limits.autoclip import autoclip
from novoclip.limits.constant import constant
from novoclip.limits.deviation import deviation
from novoclip.limits.running_mean import running_mean
from novoclip.limits.running_quantile import running_quantile
from novoclip.limits.second_moment import second_moment
from novoclip.limits.tighter import tighter
from novoclip.limits.trust_ratio import trust_ratio
from novoclip.limits.zclip import zclip

__all__ = [
    "Limit",
    "agc",
    "autoclip",
    "constant",
    "deviation",
    "running_mean",
    "running_quantile",
    "second_moment",
    "tighter",
    "trust_ratio",
    "zclip",
]
