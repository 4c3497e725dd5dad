"""Defects that reviews of the catalogue found; each test failed before it was mended."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled

ZERO, TWO = np.zeros(1, np.float32), np.ones(2, np.float32)


def once(rule, gradient, params=None):
    params = jax.tree.map(np.zeros_like, gradient) if params is None else params
    return jax.jit(lambda gradient, params: rule.update(gradient, rule.init(params), params))(gradient, params)


def run(rule, gradients, params):
    rule = compiled(rule)
    state, found = rule.init(params), []
    for gradient in gradients:
        updates, state = rule.update(gradient, state, params)
        found.append(np.asarray(updates))
    return found, state


def test_examples_of_zeros_do_not_stop_a_history_that_wraps():
    rule = novoclip.per_example(novoclip.autoclip(50.0, window=3))
    batches = [np.float32([[v], [0.0]]) for v in range(1, 9)]
    _, state = run(rule, batches, ZERO)
    np.testing.assert_array_equal(np.sort(state.limit_state.history), [6, 7, 8])


def test_examples_that_are_as_usual_count_in_the_mean():
    rule = novoclip.per_example(novoclip.clip_by_running_mean(2.0))
    _, state = run(rule, [np.ones((4, 1), np.float32), np.float32([[1.0], [1.0], [1.0], [1.9]])], ZERO)
    np.testing.assert_allclose(state.limit_state.mean, 1 + 0.9 / 4 / 2, rtol=1e-6)
    rule = novoclip.per_example(novoclip.uclip(novoclip.clip_by_value(1.0)))
    _, state = once(rule, np.float32([[6.0], [0.5], [0.5], [0.5]]), ZERO)
    np.testing.assert_allclose(state.carry, [1.25])


def test_a_carry_beyond_float16_comes_back_in_portions():
    limit = lambda step: jnp.where(step < 3, 1.0, 1e6)  # noqa: E731
    rule = novoclip.uclip(novoclip.clip_by_global_norm(limit))
    found, state = run(rule, [np.float16([4e4])] * 6, np.float16([0.0]))
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(np.sum(np.float64(found)) + state.carry, 6 * 4e4, rtol=1e-3)


@functools.cache
def spectral_clip():
    return compiled(novoclip.clip_by_spectral_norm(1.0))


@pytest.mark.parametrize("size", [8e37, 9e37, 3e38])
def test_singular_values_near_the_largest_number_are_clipped(size):
    rule, eye = spectral_clip(), np.eye(2, dtype=np.float32)
    updates, state = rule.update(eye * np.float32(size), rule.init(eye))
    np.testing.assert_allclose(updates, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(state.norms, [size, size], rtol=1e-6)


def test_a_window_outlives_a_norm_near_the_largest_number():
    found, _ = run(
        novoclip.clip_by_deviation(3.0, warmup=1, window=4), [np.float32([1e38]), *[np.float32([1.0])] * 5], ZERO
    )
    np.testing.assert_array_equal(np.ravel(found)[1:], 1)


SOFT = ("tanh", "arctan", "algebraic", "smooth")


@functools.cache
def soft(limit):
    """The program of all soft shapes, of norms and of elements."""
    makers = (novoclip.clip_by_norm, novoclip.clip_by_value)
    rules = {shape: [make(limit, shape=shape) for make in makers] for shape in SOFT}

    def run(gradient):
        return {shape: [rule.update(gradient, rule.init(gradient))[0] for rule in rules[shape]] for shape in SOFT}

    return jax.jit(run)


@pytest.mark.parametrize("shape", SOFT)
@pytest.mark.parametrize(("limit", "size"), [(1e30, 1e-9), (3e38, 1.0), (3e38, 1e38)])
def test_soft_shapes_hold_at_any_quotient(shape, limit, size):
    for updates in soft(limit)(np.float32([size]))[shape]:
        assert 0.6 * size < float(updates[0]) <= size


@pytest.mark.parametrize("shape", ["tanh", "smooth"])
def test_adagcs_soft_shapes_leave_small_gradients_alone_in_the_warm_up(shape):
    updates, _ = once(novoclip.adagc(shape=shape), np.float32([3e-4, 4e-4]))
    np.testing.assert_allclose(updates, [3e-4, 4e-4], rtol=1e-3)


def test_adagc_never_learns_zero():
    rising = novoclip.adagc(lambda_abs=optax.linear_schedule(0.0, 1.0, 10), warmup=10)
    found, _ = run(rising, [np.float32([3.0, 4.0])] * 15, np.float32([0.0, 0.0]))
    assert np.linalg.norm(found[-1]) > 0.05
    with pytest.raises(ValueError, match=r"lambda_rel must be a number in \[1, inf\]"):
        novoclip.adagc(0.9)


def test_a_band_clips_infinity_from_above():
    updates, _ = once(novoclip.clip_to_band(0.1, 1.0), np.float32([np.inf, -np.inf, 5.0, 0.01, 0.0]))
    np.testing.assert_allclose(updates, [1, -1, 1, 0.1, 0])


def test_centralize_leaves_what_has_one_input_alone():
    for rule, gradient in (
        (novoclip.centralize(()), np.ones((2, 3), np.float32)),
        (novoclip.centralize(), np.float32([[1.0, 2.0, 3.0]])),
    ):
        np.testing.assert_array_equal(once(rule, gradient)[0], gradient)
    half = np.float16([[6e4], [-6e4], [-6e4]])
    assert np.all(np.isfinite(once(novoclip.centralize(), half)[0]))


@pytest.mark.parametrize("wrap", [novoclip.guard_nonfinite, novoclip.skip_spikes])
def test_guards_hand_extra_arguments_to_multi_steps(wrap):
    inner = optax.MultiSteps(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), 1)
    guard, ones = compiled(wrap(inner)), np.float32([1.0])
    updates, _ = guard.update(ones, guard.init(ones), ones, value=np.float32(1.0))
    np.testing.assert_allclose(updates, [-0.1])


@pytest.mark.usefixtures("x64")
def test_a_norm_beyond_the_guards_precision_is_skipped():
    guard = novoclip.skip_spikes(optax.sgd(1.0), novoclip.limits.running_mean(2.0))
    found, _ = run(guard, [np.full(1, g) for g in (1e300, 1.0, 1.0, 1e6)], np.zeros(1, np.float32))
    np.testing.assert_array_equal(np.ravel(found), [0, -1, -1, 0])


def test_clippy_shortens_updates_of_any_size():
    updates, state = once(novoclip.clippy(absolute=1e-7, floor=0.0), np.float32([1e33, 1e33]), np.float32([0.0, 1.0]))
    np.testing.assert_allclose(updates, [1e-7, 1e-7], rtol=1e-5)
    assert int(state.nonfinite) == 0


def test_normalized_singular_values_are_no_noise():
    ones = np.ones((4, 4), np.float32)
    updates, _ = once(novoclip.clip_by_spectral_norm(1.0, shape="normalize"), 3 * ones)
    np.testing.assert_allclose(updates, ones / 4, atol=1e-5)
    broken = np.float32([[np.nan, 1.0], [2.0, 3.0]])
    np.testing.assert_array_equal(once(novoclip.clip_by_spectral_norm(1.0, nonfinite="propagate"), broken)[0], broken)


def test_arguments_that_would_do_nothing_raise():
    for make, message in (
        (lambda: novoclip.clip_by_norm(1.0, per="element", norm="l1"), "norm='l1' has no effect on elements"),
        (lambda: novoclip.scale_by_spam(delay=600), "delay must be less than reset_every=500"),
        (lambda: novoclip.clip_by_running_quantile(0.9, initial=np.inf), "initial must be"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert novoclip.clip_by_deviation(window=32)


def test_wrappers_carry_keys_of_random_numbers():
    noisy = optax.chain(novoclip.clip_by_value(1.0), optax.add_noise(0.1, 0.5, jax.random.key(0)))
    for rule, gradient in ((novoclip.uclip(noisy), TWO), (novoclip.per_example(noisy), np.stack([TWO] * 3))):
        assert np.all(np.isfinite(once(rule, gradient, TWO)[0]))


def test_directions_stay_within_float16():
    found, _ = run(novoclip.trace(0.9), [np.float16([4e4])] * 4, np.float16([0.0]))
    assert np.all(np.isfinite(found))


def test_qk_clip_divides_in_float32():
    query, _ = novoclip.qk_clip(jnp.ones((1, 1, 2)), jnp.ones((1, 1, 2)), jnp.array([300], jnp.bfloat16), balance=1.0)
    np.testing.assert_allclose(query, 1 / 3, rtol=1e-6)
    with pytest.raises(TypeError, match="threshold must be a number"):
        novoclip.qk_clip(query, query, jnp.ones(1), threshold=lambda step: 1.0)
    with pytest.raises(ValueError, match="head_axis=7 is no axis"):
        novoclip.qk_clip(query, query, jnp.ones(1), head_axis=7)
