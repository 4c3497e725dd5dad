"""Guards around an optimizer: steps that are left out."""

from novoclip.guards.nonfinite import NonfiniteState, guard_nonfinite, locate_nonfinite
from novoclip.guards.spikes import SpikeState, skip_spikes

__all__ = ["NonfiniteState", "SpikeState", "guard_nonfinite", "locate_nonfinite", "skip_spikes"]
