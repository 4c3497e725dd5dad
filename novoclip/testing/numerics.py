"""Checks of values: norms, bounds, zeros and infinities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.testing.subject import (
    Subject,
    computed_dtypes,
    filled,
    is_finite,
    is_zero,
    main_dtype,
    of_dtype,
    random_tree,
    shaped,
    shown_limits,
    true_norms,
    with_element,
)

# Scales whose norms float32 and bfloat16 can represent, and those for float16 and float64.
SCALES = (1.0, 1e30, 1e-30)
HALF_SCALES = (1.0, 1e4, 1e-6)
DOUBLE_SCALES = (1.0, 1e200, 1e-250)


def norms_are_those_of_float64(subject: Subject) -> None:
    """The state's norms are the true ones, for gradients of any dtype and size."""
    run = subject.jitted
    for dtype, scale in _cases():
        gradients = random_tree(1, dtype, scale)
        _, state = run.update(gradients, run.init(random_tree(dtype=dtype)), random_tree(dtype=dtype))
        if subject.per != "element":
            shown_limits(subject, state, true_norms(gradients, subject.per, subject.norm), gradients)
        assert int(state.steps) == 1, f"{state.steps} steps after one update"


def the_bound_is_honoured(subject: Subject) -> None:
    """The true norms of the result are within the limits; per element, nothing grows."""
    run = subject.jitted
    for dtype, scale in _cases():
        params = random_tree(dtype=dtype)
        state = run.init(params)
        for seed in (1, 2, 3):
            gradients = random_tree(seed, dtype, scale)
            updates, state = run.update(gradients, state, params)
            slack = _slack(dtype)
            before = true_norms(gradients, subject.per, subject.norm)
            after = true_norms(updates, subject.per, subject.norm)
            bound = before if subject.shape != "normalize" else np.full_like(before, np.inf)
            if subject.per != "element":
                limits, shown = shown_limits(subject, state, before, gradients)
                bound = np.where(shown, np.minimum(bound, limits), bound)
            # Except for subnormal results: below the smallest normal number they may round up.
            tiny = float(jnp.finfo(dtype).tiny) * 64
            assert np.all(after <= bound * slack + tiny), f"{dtype}: norms {after} exceed {bound}"


def sudden_gradients_are_made_smaller(subject: Subject) -> None:
    """A gradient ten thousand times larger than those before is reduced as the limit and the shape require."""
    run = subject.jitted
    for dtype in computed_dtypes():
        params = random_tree(dtype=dtype)
        state = run.init(params)
        usual = [random_tree(seed, dtype) for seed in (1, 2, 3)]
        for gradients in usual:
            _, state = run.update(gradients, state, params)
        spike = random_tree(4, dtype, 1e4)
        updates, state = run.update(spike, state, params)
        before, after = (true_norms(tree, subject.per, subject.norm) for tree in (spike, updates))
        # Where elements are blocks, some elements of the spike are near 0.
        largest = np.max([true_norms(gradients, subject.per, subject.norm) for gradients in usual], axis=0)
        sudden = before > 1000 * largest
        assert np.any(sudden), f"{dtype}: no norm of {before} is far above {largest}"
        most = _slack(dtype) * subject.of_spikes * before
        assert np.all((after <= most) | ~sudden), f"{dtype}: norms {before} became {after}"
        if subject.per != "element":
            limits, shown = shown_limits(subject, state, before, spike)
            expected = np.where(shown, shaped(before, limits, subject.shape), after)
            far = (_slack(dtype) - 1) * expected + 64 * float(jnp.finfo(dtype).tiny)
            assert np.all(np.abs(after - expected) <= far), f"{dtype}: norms {before} became {after}, not {expected}"


def gradients_within_the_limit_are_untouched(subject: Subject) -> None:
    """A gradient much smaller than the ones before is returned bit for bit."""
    run = subject.jitted
    for dtype in computed_dtypes():
        # Not near 0, where limits relative to the parameters are small too.
        params = of_dtype(jax.tree.map(_away_from_zero, random_tree(dtype=dtype)), dtype)
        _, state = run.update(random_tree(1, dtype), run.init(params), params)
        small = random_tree(2, dtype, 1e-3)
        updates, after = run.update(small, state, params)
        same = jax.tree.map(np.array_equal, updates, small)
        norms = true_norms(small, subject.per, subject.norm)
        # States hold no limits of single elements.
        bound = "" if subject.per == "element" else f": norm {norms}, limit {after.limits}"
        assert all(jax.tree.leaves(same)), (
            f"{dtype.__name__}: a gradient a thousand times smaller than the one before was changed{bound}"
        )


def zero_gradients_give_zeros(subject: Subject) -> None:
    """Gradients of zeros give zeros at the first step and at later ones."""
    run = subject.jitted
    params = random_tree()
    zeros = filled(params, 0.0)
    state = run.init(params)
    for gradients in (zeros, random_tree(1), zeros):
        updates, state = run.update(gradients, state, params)
        if gradients is zeros:
            assert is_zero(updates), f"zeros became {updates}"
    assert is_finite(updates), "not finite after zeros"


def complex_gradients_keep_their_phase(subject: Subject) -> None:
    """Complex elements are multiplied by real factors, and measured by their modulus."""
    run = subject.jitted
    real, imaginary = random_tree(1), random_tree(2)
    gradients = of_dtype(
        jax.tree.map(lambda a, b: 3 * np.asarray(a) + 3j * np.asarray(b), real, imaginary), main_dtype(imaginary=True)
    )
    updates, state = run.update(gradients, run.init(gradients), gradients)
    for before, after in zip(jax.tree.leaves(gradients), jax.tree.leaves(updates), strict=True):
        ratio = np.asarray(after) / np.asarray(before)
        np.testing.assert_allclose(ratio.imag, 0, atol=1e-6)
        assert np.all(ratio.real > 0) or subject.shape == "drop", "a phase changed its sign, or an element became 0"
    if subject.per != "element":
        shown_limits(subject, state, true_norms(gradients, subject.per, subject.norm), gradients)


def a_step_that_is_not_finite_leaves_no_trace(subject: Subject) -> None:
    """After NaN or inf, blocks that held it are zero, and only the counters have changed."""
    run = subject.jitted
    params = random_tree()
    _, state = run.update(random_tree(1), run.init(params), params)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        broken = filled(params, bad)
        updates, after = run.update(broken, state, params)
        assert is_finite(updates), f"{bad} became {updates}"
        if subject.per != "element" or np.isnan(bad):
            assert is_zero(updates), f"{bad} became {updates}"
        jax.tree.map(np.testing.assert_array_equal, after.limit_state, state.limit_state)
        jax.tree.map(np.testing.assert_array_equal, after.limits, state.limits)
        assert int(after.steps) == int(state.steps) + 1, "steps did not increase"
        if not isinstance(state.clipped, tuple):
            assert int(after.clipped) == int(state.clipped), "clipped increased"
            assert int(after.nonfinite) == int(state.nonfinite) + 1, "nonfinite did not increase"
    _no_dtype_lets_it_pass(subject)
    one_bad = random_tree(2)
    updates, _ = run.update(one_bad | {"bias": with_element(one_bad["bias"], jnp.nan)}, state, params)
    assert is_finite(updates), "one NaN reached other updates"
    if subject.per in ("tensor", "unit", "element"):
        clean, _ = run.update(one_bad, state, params)
        np.testing.assert_array_equal(updates["kernel"], clean["kernel"])


def a_step_that_is_not_finite_is_forgotten(subject: Subject) -> None:
    """After NaN or inf in one element, updates are finite, and later ones are as if that step had not been taken."""
    run = subject.jitted
    params = random_tree()
    _, state = run.update(random_tree(1), run.init(params), params)
    expected, _ = run.update(random_tree(2), state, params)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        broken = random_tree(2)
        broken |= {"kernel": with_element(broken["kernel"], bad)}
        updates, after = run.update(broken, state, params)
        assert is_finite(updates), f"{bad} became {updates}"
        assert int(after.steps) == int(state.steps) + 1, "steps did not increase"
        updates, _ = run.update(random_tree(2), after, params)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
    _no_dtype_lets_it_pass(subject)


def _no_dtype_lets_it_pass(subject: Subject) -> None:
    run = subject.jitted
    for dtype in computed_dtypes():
        params = random_tree(1, dtype)
        broken = params | {"bias": filled(params["bias"], jnp.nan)}
        updates, _ = run.update(broken, run.init(params), params)
        assert is_finite(updates), f"{dtype}: NaN became {updates}"
    params = random_tree(dtype=main_dtype(imaginary=True))
    for bad in (complex(np.inf, 1.0), complex(1.0, -np.inf), complex(np.nan, 1.0)):
        broken = filled(params, bad)
        updates, _ = run.update(broken, run.init(params), params)
        assert is_finite(updates), f"{bad} became {updates}"


def records_change_nothing(subject: Subject) -> None:
    """Updates are the gradients, whatever they hold."""
    run = subject.jitted
    params = random_tree()
    for value in (1.0, 1e30, jnp.nan, jnp.inf):
        gradients = of_dtype(
            jax.tree.map(lambda leaf, value=value: np.asarray(leaf) * value, random_tree(1)), main_dtype()
        )
        updates, _ = run.update(gradients, run.init(params), params)
        jax.tree.map(np.testing.assert_array_equal, updates, gradients)


def _away_from_zero(leaf: jax.Array) -> np.ndarray:
    wide = np.asarray(leaf, np.float64)
    return wide + np.sign(wide)


def _cases() -> list[tuple[Any, float]]:
    scales = {jnp.float16: HALF_SCALES, jnp.float64: DOUBLE_SCALES}
    return [(dtype, scale) for dtype in computed_dtypes() for scale in scales.get(dtype, SCALES)]


def _slack(dtype: Any) -> float:
    return 1 + (1e-12 if dtype == jnp.float64 else float(jnp.finfo(dtype).eps) + 1e-6)
