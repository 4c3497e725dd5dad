"""What the state tells, survives, and hands to the loggers."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import novoclip
from novoclip.testing.subject import random_tree
from tests.cases import CASES, FIRST, sampled
from tests.steps import compiled


def run(rule, sizes):
    rule = compiled(rule)
    state = rule.init(np.zeros(2, np.float32))
    for size in sizes:
        _, state = rule.update(np.float32([0.6 * size, 0.8 * size]), state)
    return state


def test_statistics_are_those_of_the_last_step_and_of_the_run():
    state = run(novoclip.clip_by_global_norm(1.0), [0.5, 2.0, jnp.nan, 4.0, 0.25])
    assert int(state.steps) == 5
    assert int(state.clipped) == 2
    assert int(state.nonfinite) == 1
    np.testing.assert_allclose(state.norms, 0.25, rtol=1e-6)
    assert float(state.limits) == 1.0
    assert float(state.fraction) == 0.0


def test_a_norm_that_is_not_finite_is_told_as_it_is():
    state = run(novoclip.clip_by_global_norm(1.0), [2.0, jnp.nan])
    assert np.isnan(state.norms)
    assert float(state.limits) == 1.0


def test_the_fraction_is_the_share_of_blocks_beyond_their_limit():
    gradients = {"a": np.float32([3.0]), "b": np.float32([0.5]), "c": np.float32([2.0]), "d": np.float32([0.1])}
    rule = compiled(novoclip.clip_by_norm(1.0))
    assert float(rule.update(gradients, rule.init(gradients))[1].fraction) == 0.5
    rule = compiled(novoclip.clip_by_value(1.0, count=True))
    numbers = {"a": np.float32([3.0, 0.5, 1.0, -2.0]), "b": np.zeros((2, 2), np.float32)}
    assert float(rule.update(numbers, rule.init(numbers))[1].fraction) == 0.25


def test_counters_stop_at_the_largest_integer():
    rule = compiled(novoclip.clip_by_global_norm(1.0))
    largest = np.int32(np.iinfo(np.int32).max)
    state = rule.init(np.zeros(2, np.float32))._replace(steps=largest, clipped=largest, nonfinite=largest)
    for gradient in (np.float32([3.0, 4.0]), np.float32([np.nan, 0.0])):
        _, state = rule.update(gradient, state)
    assert int(state.steps) == int(state.clipped) == int(state.nonfinite) == largest


def test_nonfinite_propagate_passes_the_gradient_on():
    rule = compiled(novoclip.clip_by_global_norm(1.0, nonfinite="propagate"))
    for value in (np.nan, np.inf):
        gradient = np.float32([value, 2.0])
        updates, state = rule.update(gradient, rule.init(gradient))
        np.testing.assert_array_equal(updates, gradient)
        assert int(state.nonfinite) == 1
    rule = compiled(novoclip.clip_by_value(1.0, nonfinite="propagate"))
    gradient = np.float32([np.nan, np.inf, 2.0])
    np.testing.assert_array_equal(rule.update(gradient, rule.init(gradient))[0], [jnp.nan, 1.0, 1.0])


def test_one_bad_block_is_zeroed_and_forgotten_alone():
    rule = compiled(novoclip.autoclip(50.0, window=3, per="tensor"))
    good = {"a": np.float32([3.0, 4.0]), "b": np.float32([1.0])}
    _, state = jax.device_get(rule.update(good, rule.init(good)))
    updates, after = jax.device_get(rule.update({"a": np.float32([np.inf, 1.0]), "b": np.float32([2.0])}, state))
    assert not np.any(updates["a"])
    np.testing.assert_allclose(updates["b"], [1.5])
    np.testing.assert_array_equal(after.limit_state.history[0], state.limit_state.history[0])
    np.testing.assert_array_equal(after.limit_state.slot, [1, 2])
    assert (int(after.nonfinite), int(after.nonfinite_in_a_row)) == (1, 1)


def some_numbers(leaf):
    """An array of that type, of numbers that all differ. NumPy makes it, so that nothing is compiled."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(3)
    numbers = np.sqrt(np.arange(2.0, 2 + leaf.size)).reshape(leaf.shape)
    return jax.device_put((numbers if jnp.issubdtype(leaf.dtype, jnp.inexact) else 9 * numbers).astype(leaf.dtype))


def test_orbax_restores_every_state_bit_for_bit(tmp_path):
    made = {str(i): jax.eval_shape(case.transform().init, random_tree()) for i, case in enumerate(CASES)}
    states = jax.tree.map(some_numbers, made)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "states", states)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "states", jax.eval_shape(lambda: states))
    for i, case in enumerate(CASES):
        found, state = restored[str(i)], states[str(i)]
        assert jax.tree.structure(found) == jax.tree.structure(state), case.name
        jax.tree.map(lambda a, b, name=case.name: np.testing.assert_array_equal(a, b, err_msg=name), found, state)


def test_paths_of_nnx_models_have_no_value_suffix():
    seen = []
    model = nnx.state(nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0))), nnx.Param)
    jax.eval_shape(novoclip.groups(lambda path, leaf: seen.append(path) or path).norms, model)
    assert sorted(set(seen)) == ["bias", "kernel"]


def test_record_keeps_norms_only():
    with pytest.raises(ValueError, match=r"per must name blocks whose norms can be kept.*; got 'element'"):
        novoclip.record(per="element")
    state = run(novoclip.record(), [2.0, 5.0])
    np.testing.assert_allclose(state.norms, 5.0, rtol=1e-6)
    assert int(state.clipped) == 0


@pytest.mark.parametrize("case", sampled(FIRST, ("adagc", "clip_by_deviation", "clip_by_running_quantile", "adam")))
def test_a_state_that_was_cast_to_16_bits_works_on(case):
    """As it does when a whole train state is cast."""
    params = jax.tree.map(lambda leaf: leaf + 3, random_tree(1))
    gradients = random_tree(2)

    def step(gradients, params):
        transform = case.transform()
        state = transform.init(params)
        cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, state)
        updates, new = transform.update(gradients, cast, params)
        assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, cast)
        return updates, transform.update(gradients, state, params)[0]

    if case.entry.place == "shards":
        step = jax.vmap(step, axis_name="devices", in_axes=None, axis_size=1)
    found, expected = jax.jit(step)(gradients, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-7), found, expected)
