"""Limits of one block in plain Python: each call takes the norm of a step and returns its limit.

Every number may be a function of the step, which counts from 0. A norm that is not finite is no
step for a memory, but it is one for the functions.
"""

import math

import numpy as np


def at(value, step):
    return value(step) if callable(value) else value


class Constant:
    def __init__(self, value):
        self.value = value

    def __call__(self, n, step):
        return at(self.value, step)


class AutoClip:
    """Seetharaman et al., 2020: append the norm, then take a percentile of all. Zeros are passed over."""

    def __init__(self, percentile, window, include_current=True):
        self.percentile, self.window, self.include_current, self.history = percentile, window, include_current, []

    def __call__(self, n, step):
        before = self.history
        if n > 0:
            self.history = [*before, n][-self.window :]
        used = self.history if self.include_current else before
        return np.percentile(used, at(self.percentile, step)) if used else math.inf


class ZClip:
    """Kumar et al., 2025: norms collected first, then exponential moments of what was let through.

    Spikes beyond the first `release` in a row are learned as they are. Zeros are passed over.
    """

    def __init__(
        self,
        z_threshold=2.5,
        decay=0.97,
        warmup=25,
        max_norm=math.inf,
        mode="adaptive_scaling",
        eps=1e-6,
        clip_factor=1.0,
        skip_update_on_spike=False,
        release=None,
    ):
        self.z_threshold, self.decay, self.warmup, self.max_norm = z_threshold, decay, warmup, max_norm
        self.mode, self.eps, self.collected = mode, eps, []
        self.clip_factor, self.skip, self.release = clip_factor, skip_update_on_spike, release
        self.spikes_in_a_row = 0

    def __call__(self, n, step):
        if n == 0:
            return 0.0
        z_threshold, decay = at(self.z_threshold, step), at(self.decay, step)
        max_norm, eps = at(self.max_norm, step), at(self.eps, step)
        if len(self.collected) < self.warmup:
            self.collected.append(n)
            if len(self.collected) == self.warmup:
                self.mean = sum(self.collected) / self.warmup
                self.variance = sum((x - self.mean) ** 2 for x in self.collected) / self.warmup
            return max_norm
        deviation = math.sqrt(self.variance)
        limit = None
        if self.mode == "percentile":
            threshold = self.mean + z_threshold * deviation
            limit = threshold if n > threshold else None
        else:
            z = (n - self.mean) / (deviation + eps)
            if z > z_threshold:
                limit = self.mean
                if self.mode == "adaptive_scaling":
                    limit = at(self.clip_factor, step) * (limit + z_threshold * deviation / (z / z_threshold))
        let_through = n if limit is None else limit
        released = self.release is not None and self.spikes_in_a_row >= self.release
        self.spikes_in_a_row = 0 if limit is None else self.spikes_in_a_row + 1
        if limit is None or released or not self.skip:
            learned = n if released else let_through
            self.mean = decay * self.mean + (1 - decay) * learned
            self.variance = decay * self.variance + (1 - decay) * (learned - self.mean) ** 2
        return min(let_through, max_norm)


class InverseSecondMoment:
    """C / sqrt(v), with v = b2 v + (1 - b2) n^2 taken first; infinite where v is 0."""

    def __init__(self, threshold, b2):
        self.threshold, self.b2, self.v = threshold, b2, 0.0

    def __call__(self, n, step):
        b2 = at(self.b2, step)
        self.v = b2 * self.v + (1 - b2) * n**2
        return at(self.threshold, step) / math.sqrt(self.v) if self.v > 0 else math.inf


class ProportionalSecondMoment:
    """k sqrt(v) with v of before, seeded with the first n that is not 0, then fed min(n, limit).

    v is a plain mean while 1 / t is above 1 - b2. Zeros are passed over.
    """

    def __init__(self, threshold, b2):
        self.threshold, self.b2, self.v, self.seen = threshold, b2, 0.0, 0

    def __call__(self, n, step):
        limit = at(self.threshold, step) * math.sqrt(self.v) if self.seen else math.inf
        if n > 0:
            self.seen += 1
            rate = max(1 - at(self.b2, step), 1 / self.seen)
            self.v = (1 - rate) * self.v + rate * min(n, limit) ** 2
        return limit
