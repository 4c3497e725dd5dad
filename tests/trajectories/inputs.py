"""The gradients, parameters and losses that the published code in rules.json was given."""

import numpy as np

from tests.storm import SHAPES, storm

STEPS = 37


def gradients_without_faults(steps=STEPS):
    """The storm's start, spikes and dips, without the zeros and the NaN, which published code does not survive."""
    gradients = storm()[:steps]
    gradients[0]["a/bias"] = np.full(SHAPES["a/bias"], 0.1)
    for step, gradient in enumerate(gradients):
        norm = sum(np.sum(leaf**2) for leaf in gradient.values())
        if not 0 < norm < np.inf:
            gradients[step] = {name: 0.5 * leaf for name, leaf in gradients[step - 1].items()}
    return gradients


def parameters():
    generator = np.random.default_rng(1)
    return {name: np.asarray(0.5 * generator.normal(size=SHAPES[name])) for name in sorted(SHAPES)}


def losses(steps=STEPS):
    """A noisy loss that falls and jumps once, at step 22."""
    values = 1 + 1 / np.arange(1, steps + 1) + 0.1 * np.random.default_rng(2).normal(size=steps)
    values[22:23] *= 10
    return values
