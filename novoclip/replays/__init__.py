"""Recorded norms of a run replayed through clipping rules: which rule, and which threshold."""

from novoclip.replays.outcome import Outcome
from novoclip.replays.replay import Replay, replay

__all__ = ["Outcome", "Replay", "replay"]
