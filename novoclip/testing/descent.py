"""Checks of optimizers: zeros, skipped steps, low precision."""

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.testing.subject import Subject, dtypes, random_tree


def a_first_gradient_of_zeros_gives_zeros(subject: Subject) -> None:
    """Zeros give zeros, in parameters without decay, and nothing that is not finite comes after."""
    for dtype in dtypes():
        zeros = jax.tree.map(jnp.zeros_like, random_tree(dtype=dtype))
        state = subject.init(zeros)
        for gradients in (zeros, zeros, random_tree(1, dtype), zeros):
            updates, state = subject.update(gradients, state, zeros)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates)), f"{dtype}: {updates}"
            if int(state.steps) <= 2:
                assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates)), f"{dtype}: zeros became {updates}"


def a_step_that_is_not_finite_is_skipped(subject: Subject) -> None:
    """After NaN or inf in one number, updates are zero and nothing but the counters has moved."""
    for dtype in dtypes():
        params = random_tree(dtype=dtype)
        _, state = subject.update(random_tree(1, dtype), subject.init(params), params)
        expected, _ = subject.update(random_tree(2, dtype), state, params)
        for bad in (jnp.nan, jnp.inf, -jnp.inf):
            broken = random_tree(2, dtype)
            broken |= {"bias": broken["bias"].at[1].set(bad)}
            updates, after = subject.update(broken, state, params)
            assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates)), f"{bad} became {updates}"
            jax.tree.map(np.testing.assert_array_equal, (after.memory, after.clip), (state.memory, state.clip))
            assert int(after.steps) == int(state.steps) + 1, "steps stood still"
            assert int(after.nonfinite) == int(state.nonfinite) + 1, "nonfinite stood still"
            updates, _ = subject.update(random_tree(2, dtype), after, params)
            jax.tree.map(np.testing.assert_array_equal, updates, expected)


def low_precision_follows_float32(subject: Subject) -> None:
    """In 16 bits every update is the float32 one, rounded once: no moment or hyper-parameter is."""
    for dtype in (jnp.float16, jnp.bfloat16):
        params = random_tree(dtype=dtype)
        state, wide_params = subject.init(params), random_tree(dtype=jnp.float32)
        wide_params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        wide_state = subject.init(wide_params)
        for seed in range(6):
            gradients = random_tree(seed, dtype)
            updates, state = subject.update(gradients, state, params)
            wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients)
            expected, wide_state = subject.update(wide, wide_state, wide_params)
            for found, leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
                # One rounding; a rule in front rounds to 16 bits too.
                near = float(jnp.finfo(dtype).eps) * np.abs(leaf)
                near = near if state.clip == () else 4 * near + np.max(near, initial=0)
                tiny = float(jnp.finfo(dtype).tiny)
                assert np.all(np.abs(np.asarray(found, np.float32) - leaf) <= near + tiny), f"{found} is not {leaf}"
