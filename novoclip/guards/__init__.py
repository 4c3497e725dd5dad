"""Guards around an optimizer: steps that are skipped, and what is known of them."""

from novoclip.guards.locate import locate_nonfinite
from novoclip.guards.nonfinite import NonfiniteState, guard_nonfinite
from novoclip.guards.spikes import SpikeState, skip_spikes
from novoclip.guards.stop import TrainingStoppedError, check

__all__ = [
    "NonfiniteState",
    "SpikeState",
    "TrainingStoppedError",
    "check",
    "guard_nonfinite",
    "locate_nonfinite",
    "skip_spikes",
]
