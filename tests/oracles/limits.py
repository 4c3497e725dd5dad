"""Limits of one block in plain Python: each call takes the norm of a step and returns its limit."""

import math

import numpy as np


class Constant:
    def __init__(self, value):
        self.value = value

    def __call__(self, n):
        return self.value


class AutoClip:
    """Seetharaman et al., 2020: append the norm, then take a percentile of all."""

    def __init__(self, percentile, window):
        self.percentile, self.window, self.history = percentile, window, []

    def __call__(self, n):
        self.history.append(n)
        return np.percentile(self.history[-self.window :], self.percentile)


class ZClip:
    """Kumar et al., 2025: norms collected first, then exponential moments of what was let through."""

    def __init__(self, z_threshold=2.5, decay=0.97, warmup=25, max_norm=math.inf, mode="adaptive_scaling", eps=1e-6):
        self.z_threshold, self.decay, self.warmup, self.max_norm = z_threshold, decay, warmup, max_norm
        self.mode, self.eps, self.collected = mode, eps, []

    def __call__(self, n):
        if len(self.collected) < self.warmup:
            self.collected.append(n)
            if len(self.collected) == self.warmup:
                self.mean = sum(self.collected) / self.warmup
                self.variance = sum((x - self.mean) ** 2 for x in self.collected) / self.warmup
            return self.max_norm
        deviation = math.sqrt(self.variance)
        limit = None
        if self.mode == "percentile":
            threshold = self.mean + self.z_threshold * deviation
            limit = threshold if n > threshold else None
        else:
            z = (n - self.mean) / (deviation + self.eps)
            if z > self.z_threshold:
                limit = self.mean
                if self.mode == "adaptive_scaling":
                    limit += self.z_threshold * deviation / (z / self.z_threshold)
        let_through = n if limit is None else limit
        self.mean = self.decay * self.mean + (1 - self.decay) * let_through
        self.variance = self.decay * self.variance + (1 - self.decay) * (let_through - self.mean) ** 2
        return min(let_through, self.max_norm)


class InverseSecondMoment:
    """C / sqrt(v), with v = b2 v + (1 - b2) n^2 taken first; infinite where v is 0."""

    def __init__(self, threshold, b2):
        self.threshold, self.b2, self.v = threshold, b2, 0.0

    def __call__(self, n):
        self.v = self.b2 * self.v + (1 - self.b2) * n**2
        return self.threshold / math.sqrt(self.v) if self.v > 0 else math.inf


class ProportionalSecondMoment:
    """k sqrt(v) with v of before, seeded with the first n that is not 0, then fed min(n, limit)."""

    def __init__(self, threshold, b2):
        self.threshold, self.b2, self.v = threshold, b2, 0.0

    def __call__(self, n):
        if self.v == 0:
            self.v = n**2
            return math.inf
        limit = self.threshold * math.sqrt(self.v)
        self.v = self.b2 * self.v + (1 - self.b2) * min(n, limit) ** 2
        return limit
