"""Wrappers around any rule."""

from novoclip.wrappers.carry import CarryState, clip21, uclip
from novoclip.wrappers.delay import DelayedState, start_after
from novoclip.wrappers.examples import per_example
from novoclip.wrappers.shards import across_shards

__all__ = ["CarryState", "DelayedState", "across_shards", "clip21", "per_example", "start_after", "uclip"]
