"""Clipping in float64 NumPy, one block at a time: what every rule has to equal."""

import math

import numpy as np


def blocks_of(tree, per, label_of=None):
    """The blocks of a dict of arrays, each a list of (name, index)."""
    if per == "tree":
        return [[(name, ...) for name in sorted(tree)]]
    if per == "tensor":
        return [[(name, ...)] for name in sorted(tree)]
    if per in ("unit", "torch"):
        return [[(name, index)] for name in sorted(tree) for index in _units(tree[name], per)]
    if per == "element":
        return [[(name, index)] for name in sorted(tree) for index in np.ndindex(tree[name].shape)]
    labels = dict.fromkeys(label_of(name) for name in sorted(tree))
    return [[(name, ...) for name in sorted(tree) if label_of(name) == label] for label in labels]


def _units(leaf, per):
    if leaf.ndim < 2:
        return [...]
    return [(row,) for row in range(leaf.shape[0])] if per == "torch" else [(..., i) for i in range(leaf.shape[-1])]


def numbers_of(tree, block):
    return np.concatenate([np.ravel(tree[name][index]) for name, index in block])


def norm_of(numbers, norm):
    sizes = np.abs(numbers)
    return {
        "l1": np.sum(sizes),
        "l2": math.sqrt(np.sum(sizes**2)),
        "max": np.max(sizes),
        "rms": math.sqrt(np.mean(sizes**2)),
    }[norm]


def new_norm(n, c, shape):
    """What becomes of a norm n at a limit c."""
    if shape == "hard":
        return min(n, c)
    if shape == "drop":
        return n if n <= c else 0.0
    if math.isinf(c):
        return n
    if shape == "normalize":
        return c if n > 0 else 0.0
    if c == 0:
        return 0.0
    return {
        "tanh": c * math.tanh(n / c),
        "arctan": 2 * c / math.pi * math.atan(math.pi * n / (2 * c)),
        "algebraic": n / math.sqrt(1 + (n / c) ** 2),
        "smooth": n / (1 + n / c),
    }[shape]


def clipped(gradients, new_limit, blocks, norm="l2", shape="hard"):
    """Yield the clipped gradient of each step; `new_limit()` makes a block's own limit."""
    limits = [new_limit() for _ in blocks]
    for step, gradient in enumerate(gradients):
        result = {name: leaf.copy() for name, leaf in gradient.items()}
        for block, limit in zip(blocks, limits, strict=True):
            n = norm_of(numbers_of(gradient, block), norm)
            factor = 0.0
            if math.isfinite(n):
                new = new_norm(n, limit(n, step), shape)
                factor = new / n if n > 0 else 1.0
            for name, index in block:
                result[name][index] = gradient[name][index] * factor if factor else 0.0
        yield result
