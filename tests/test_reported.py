"""Defects that a review found, each with the smallest case that shows it."""

import jax
import jax.numpy as jnp
import numpy as np

import novoclip


def once(rule, gradient):
    return rule.update(gradient, rule.init(gradient))[0]


def test_a_finite_spike_in_the_warm_up_does_not_end_zclip():
    rule = novoclip.zclip()
    update, state = jax.jit(rule.update), rule.init(jnp.zeros(2))
    for step in range(40):
        size = 1e25 if step == 3 else 0.01 * (1 + 0.1 * np.sin(step))
        updates, state = update(size * jnp.array([3.0, 4.0]), state)
    assert np.isfinite(state.limits)
    assert np.all(np.asarray(updates) > 0)


def test_complex_infinities_are_not_passed_on():
    gradient = jnp.array([jnp.inf + 1j, 3e38 + 3e38j, 3 + 4j], jnp.complex64)
    updates = np.asarray(once(novoclip.clip_by_value(1.0), gradient))
    np.testing.assert_allclose(updates, [0, 0, 0.6 + 0.8j], rtol=1e-6)


def test_infinities_stay_finite_in_float16_under_a_larger_limit():
    updates = once(novoclip.clip_by_value(1e5), jnp.array([jnp.inf, -jnp.inf, 2.0], jnp.float16))
    np.testing.assert_array_equal(updates, np.array([65504, -65504, 2], np.float16))


def test_gradients_too_small_to_measure_come_back_whole():
    gradient = jnp.full(3, 1e-35)
    np.testing.assert_array_equal(once(novoclip.clip_by_global_norm(1.0), gradient), gradient)


def test_parameters_called_value_keep_their_path():
    seen = []
    tree = {"attention": {"query": jnp.ones(2), "value": jnp.ones(2)}}
    novoclip.groups(lambda path, leaf: seen.append(path) or path).norms(tree)
    assert seen == ["attention/query", "attention/value"]
