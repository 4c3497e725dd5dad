"""Checks of optimizers: zeros, skipped steps, low precision."""

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.testing.subject import (
    Subject,
    computed_dtypes,
    filled,
    is_finite,
    is_zero,
    of_dtype,
    random_tree,
    with_element,
)


def a_first_gradient_of_zeros_gives_zeros(subject: Subject) -> None:
    """Zeros give zeros if the parameters are zeros, and all later updates are finite."""
    run = subject.jitted
    for dtype in computed_dtypes():
        zeros = filled(random_tree(dtype=dtype), 0.0)
        state = run.init(zeros)
        for gradients in (zeros, zeros, random_tree(1, dtype), zeros):
            updates, state = run.update(gradients, state, zeros)
            assert is_finite(updates), f"{dtype}: {updates}"
            if int(state.steps) <= 2:
                assert is_zero(updates), f"{dtype}: zeros became {updates}"


def a_step_that_is_not_finite_is_skipped(subject: Subject) -> None:
    """After NaN or inf in one element, updates are zero and only the counters have changed."""
    run = subject.jitted
    for dtype in computed_dtypes():
        params = random_tree(dtype=dtype)
        _, state = run.update(random_tree(1, dtype), run.init(params), params)
        expected, _ = run.update(random_tree(2, dtype), state, params)
        for bad in (jnp.nan, jnp.inf, -jnp.inf):
            broken = random_tree(2, dtype)
            broken |= {"bias": with_element(broken["bias"], bad)}
            updates, after = run.update(broken, state, params)
            assert is_zero(updates), f"{bad} became {updates}"
            jax.tree.map(np.testing.assert_array_equal, (after.moments, after.clip), (state.moments, state.clip))
            assert int(after.steps) == int(state.steps) + 1, "steps did not increase"
            assert int(after.nonfinite) == int(state.nonfinite) + 1, "nonfinite did not increase"
            updates, _ = run.update(random_tree(2, dtype), after, params)
            jax.tree.map(np.testing.assert_array_equal, updates, expected)


def low_precision_follows_float32(subject: Subject) -> None:
    """In 16 bits every update is the float32 one, rounded once; moments and hyper-parameters are not rounded."""
    run = subject.jitted
    for dtype in (jnp.float16, jnp.bfloat16):
        params = random_tree(dtype=dtype)
        wide_params = of_dtype(params, jnp.float32)
        state, wide_state = run.init(params), run.init(wide_params)
        for seed in range(6):
            gradients = random_tree(seed, dtype)
            updates, state = run.update(gradients, state, params)
            expected, wide_state = run.update(of_dtype(gradients, jnp.float32), wide_state, wide_params)
            for found, leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
                # One rounding; a clipping rule before the optimizer rounds to 16 bits too.
                near = float(jnp.finfo(dtype).eps) * np.abs(np.asarray(leaf))
                near = near if state.clip == () else 4 * near + np.max(near, initial=0)
                tiny = float(jnp.finfo(dtype).tiny)
                far = np.abs(np.asarray(found, np.float32) - np.asarray(leaf))
                assert np.all(far <= near + tiny), f"{found} is not {leaf}"
