"""Checks of derivatives, which share one compiled program."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.testing.subject import Subject, filled, is_finite, main_dtype, random_tree


def derivatives_are_finite(subject: Subject) -> None:
    """The derivative of the update with respect to the gradient is finite at 0, 1e-30, 1 and 1e30."""
    params = random_tree(dtype=main_dtype())
    state, ones = subject.jitted.init(params), filled(params, 1.0)
    for scale in (0.0, 1e-30, 1.0, 1e30):
        _, found = _derivatives(subject)(random_tree(1, main_dtype(), scale), ones, ones, state, params)
        assert is_finite(found), f"at {scale}: {found}"


def derivatives_are_those_of_differences(subject: Subject) -> None:
    """The derivative of the update along a direction equals central differences, in forward and reverse mode."""
    dtype = main_dtype()
    step, tolerance = (1e-5, 1e-6) if dtype == jnp.float64 else (3e-3, 2e-2)
    params, run = random_tree(dtype=dtype), subject.jitted
    _, state = run.update(random_tree(1, dtype), run.init(params), params)
    at, along, weights = (random_tree(seed, dtype, scale) for seed, scale in ((2, 3.0), (3, 1.0), (4, 1.0)))
    forwards, backwards = _derivatives(subject)(at, along, weights, state, params)
    above, below = (
        run.update(
            jax.tree.map(lambda leaf, to, by=by: np.asarray(leaf) + np.asarray(by * to, dtype), at, along),
            state,
            params,
        )[0]
        for by in (step, -step)
    )
    found = _flat(forwards)
    expected = (_flat(above) - _flat(below)) / (2 * step)
    scale = np.max(np.abs(expected)) + 1
    np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0)
    # The transpose of the same derivative.
    one, other = _flat(weights) * found, _flat(backwards) * _flat(along)
    terms = np.sum(np.abs(one) + np.abs(other))
    np.testing.assert_allclose(np.sum(other), np.sum(one), atol=32 * float(jnp.finfo(dtype).eps) * terms, rtol=0)


@functools.lru_cache(maxsize=4)
def _derivatives(subject: Subject) -> Callable[..., tuple[Any, Any]]:
    """Return the function that returns the derivative along a direction, and the gradient of the weighted sum."""

    def derivatives(at: Any, along: Any, weights: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def updates_of(gradients: Any) -> Any:
            return subject.update(gradients, state, params)[0]

        _, forwards = jax.jvp(updates_of, (at,), (along,))
        (backwards,) = jax.vjp(updates_of, at)[1](weights)
        return forwards, backwards

    return jax.jit(derivatives)


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
