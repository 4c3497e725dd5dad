"""Steps of a transform."""

import jax
import optax


def compiled(transform):
    """The transform as two programs. Called as it is, it is one for each operation and shape, which takes longer."""
    return optax.GradientTransformationExtraArgs(jax.jit(transform.init), jax.jit(transform.update))
