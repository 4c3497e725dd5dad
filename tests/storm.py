"""A sequence of gradients with everything that goes wrong in a run."""

import numpy as np

SHAPES = {"a/bias": (3,), "a/kernel": (4, 3), "b/convolution": (2, 3, 2), "b/scale": ()}


def storm(steps=200, seed=0):
    """A smooth start, one leaf zero at first, spikes, dips, a zero step, a NaN step, and a level shift."""
    generator = np.random.default_rng(seed)
    gradients = []
    for step in range(steps):
        level = (1 + 0.1 * generator.normal()) * (3.0 if step >= 45 else 1.0) * (0.01 if step in (35, 36) else 1.0)
        gradients.append({name: np.asarray(level * generator.normal(size=shape)) for name, shape in SHAPES.items()})
    gradients[0]["a/bias"] = np.zeros(3)
    for step in (28, 29, 40):
        gradients[step]["a/kernel"] *= 1000
    gradients[32] = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    gradients[38]["b/convolution"][0, 0, 0] = np.nan
    return gradients
