"""More limits of one block, in the same form as in `limits`, and the rules that are no scaling of blocks."""

import math

import numpy as np

from tests.oracles.blocks import norm_of
from tests.oracles.limits import at


class RunningQuantile:
    """Andrew et al., 2019, for one norm a step: the limit, then c moved by rate (b - quantile)."""

    def __init__(self, quantile, rate=0.2, form="geometric", initial=None):
        self.quantile, self.rate, self.form, self.initial, self.c = quantile, rate, form, initial, None

    def __call__(self, n, step):
        if n == 0:
            return math.inf
        if self.c is None:
            self.c = n if self.initial is None else at(self.initial, step)
        limit = self.c
        move = at(self.rate, step) * ((n <= limit) - at(self.quantile, step))
        self.c = limit * math.exp(-move) if self.form == "geometric" else limit - move
        return limit


class Deviation:
    """Levanter: the mean of the norms before, plus k deviations of the population, once there are enough."""

    def __init__(self, k, window, warmup, learn="clipped", eps=1e-6):
        self.k, self.window, self.warmup, self.learn, self.eps, self.history = k, window, warmup, learn, eps, []

    def __call__(self, n, step):
        limit, latest = math.inf, self.history[-self.window :]
        if len(latest) >= self.warmup:
            mean = np.mean(latest)
            limit = mean + at(self.k, step) * max(np.std(latest), at(self.eps, step) * mean)
        if n > 0:
            self.history.append(min(n, limit) if self.learn == "clipped" else n)
        return limit


class RunningMean:
    """A multiple of the mean of what was let through, which is a plain mean while 1 / t is above 1 - decay."""

    def __init__(self, factor, decay):
        self.factor, self.decay, self.mean, self.seen = factor, decay, 0.0, 0

    def __call__(self, n, step):
        limit = at(self.factor, step) * self.mean if self.seen else math.inf
        if n > 0:
            self.seen += 1
            rate = max(1 - at(self.decay, step), 1 / self.seen)
            self.mean += rate * (min(n, limit) - self.mean)
        return limit


class AdaGC:
    """Wang et al., 2025; `wholes` are the norms of the whole gradient, a step each."""

    def __init__(self, wholes, factor=1.05, absolute=1.0, decay=0.98, warmup=100, floor=0.0):
        self.wholes, self.factor, self.absolute, self.decay = wholes, factor, absolute, decay
        self.warmup, self.floor, self.gamma, self.seen = warmup, floor, math.inf, 0

    def __call__(self, n, step):
        if n == 0:
            return math.inf
        self.seen += 1
        decay, least = at(self.decay, step), at(self.floor, step)
        if self.seen <= self.warmup:
            limit = n * min(1, at(self.absolute, step) / self.wholes[step])
            self.gamma = max(min(self.gamma, limit), least)
        else:
            limit = at(self.factor, step) * self.gamma
            self.gamma = max(decay * self.gamma + (1 - decay) * min(n, limit), least)
        return limit


class AdaGN:
    """Huang et al., 2025: the mean of the norms over the root of the mean of their squares; a shape "normalize"."""

    def __init__(self, b1=0.7, b2=0.9, eps=1e-8):
        self.b1, self.b2, self.eps = b1, b2, eps
        self.a = self.b = 0.0
        self.left1 = self.left2 = 1.0

    def __call__(self, n, step):
        if n == 0:
            return 0.0
        b1, b2 = at(self.b1, step), at(self.b2, step)
        self.left1, self.left2 = self.left1 * b1, self.left2 * b2
        self.a = b1 * self.a + (1 - b1) * n
        self.b = b2 * self.b + (1 - b2) * n**2
        return self.a / (1 - self.left1) / (math.sqrt(self.b / (1 - self.left2)) + at(self.eps, step))


class ShareOfParameters:
    """Brock et al., 2021."""

    def __init__(self, weights, clipping=0.01, eps=1e-3):
        self.weights, self.clipping, self.eps = weights, clipping, eps

    def __call__(self, n, step):
        return at(self.clipping, step) * max(self.weights, at(self.eps, step))


class TrustRatio:
    """You et al., 2017 and 2019: no limit where the ratio is 0."""

    def __init__(self, weights, coefficient=1e-3, learning_rate=None, min_norm=0.0, max_norm=math.inf):
        self.weights, self.coefficient, self.learning_rate = weights, coefficient, learning_rate
        self.min_norm, self.max_norm = min_norm, max_norm

    def __call__(self, n, step):
        phi = min(max(self.weights, at(self.min_norm, step)), at(self.max_norm, step))
        rate = 1 if self.learning_rate is None else at(self.learning_rate, step)
        return at(self.coefficient, step) * phi / rate if phi > 0 and rate > 0 else math.inf


class Share:
    """Tucat et al., 2024: never below a share of the norm."""

    def __init__(self, c, delta):
        self.c, self.delta = c, delta

    def __call__(self, n, step):
        return max(at(self.c, step), at(self.delta, step) * n)


class Band:
    """Lee et al., 2025: from above and from below; a shape "normalize"."""

    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, n, step):
        return min(max(n, at(self.low, step)), at(self.high, step))


class Tighter:
    def __init__(self, *limits):
        self.limits = limits

    def __call__(self, n, step):
        return min(limit(n, step) for limit in self.limits)


def adaclip(gradients, decay=0.999):
    """AdaClip of Stable-SPAM: numbers beyond the corrected mean of the maxima become g c / n."""
    means, left = dict.fromkeys(gradients[0], 0.0), dict.fromkeys(gradients[0], 1.0)
    for step, gradient in enumerate(gradients):
        result = {}
        for name, leaf in gradient.items():
            n, d = np.max(np.abs(leaf)), at(decay, step)
            result[name] = leaf if n == 0 else 0 * np.nan_to_num(leaf)
            if n > 0:
                means[name] = d * means[name] + (1 - d) * n
                left[name] *= d
                c = means[name] / (1 - left[name])
                result[name] = np.where(np.abs(leaf) > c, leaf / n * c, leaf)
        yield result


def clippy(gradients, params, relative=0.1, absolute=1e-3, floor=0.1):
    """Tang et al., 2023, with weights that count as at least a share of their tensor's root mean square."""
    for step, gradient in enumerate(gradients):
        result = {}
        for name, leaf in gradient.items():
            w = np.abs(params[name])
            weights = np.maximum(w, at(floor, step) * norm_of(w, "rms"))
            n = np.max(np.abs(leaf) / (at(relative, step) * weights + at(absolute, step)))
            result[name] = leaf / max(n, 1) if np.isfinite(n) else np.zeros_like(leaf)
        yield result


def spectral(matrix, new):
    """U diag(new(s)) V^T, of the matrix whose columns are the last axis."""
    rows = np.reshape(matrix, (-1, matrix.shape[-1] if matrix.ndim > 1 else 1))
    if not np.all(np.isfinite(rows)):
        return np.zeros_like(matrix)
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    return np.reshape((left * [new(s) for s in values]) @ right, matrix.shape)


def centralized(leaf, layout):
    """Yong et al., 2020: less the mean over the inputs, of leaves with outputs in the last or the first axis."""
    if leaf.ndim < 2:
        return np.where(np.isfinite(leaf), leaf, 0)
    outputs = leaf.ndim - 1 if layout == "flax" else 0
    mean = np.mean(leaf, axis=tuple(axis for axis in range(leaf.ndim) if axis != outputs), keepdims=True)
    return np.where(np.isfinite(mean), leaf - mean, 0)
