"""What the state tells, survives, and hands to the loggers."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import novoclip
from novoclip.testing.subject import random_tree
from tests.cases import CASES


def run(rule, sizes):
    state = rule.init(jnp.zeros(2))
    for size in sizes:
        _, state = rule.update(size * jnp.array([0.6, 0.8]), state)
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
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([0.5]), "c": jnp.array([2.0]), "d": jnp.array([0.1])}
    rule = novoclip.clip_by_norm(1.0)
    assert float(rule.update(gradients, rule.init(gradients))[1].fraction) == 0.5
    rule = novoclip.clip_by_value(1.0, count=True)
    numbers = {"a": jnp.array([3.0, 0.5, 1.0, -2.0]), "b": jnp.zeros((2, 2))}
    assert float(rule.update(numbers, rule.init(numbers))[1].fraction) == 0.25


def test_counters_stop_at_the_largest_integer():
    rule = novoclip.clip_by_global_norm(1.0)
    largest = jnp.array(jnp.iinfo(jnp.int32).max, jnp.int32)
    state = rule.init(jnp.zeros(2))._replace(steps=largest, clipped=largest, nonfinite=largest)
    for gradient in (jnp.array([3.0, 4.0]), jnp.array([jnp.nan, 0.0])):
        _, state = rule.update(gradient, state)
    assert state.steps == state.clipped == state.nonfinite == largest


def test_nonfinite_propagate_passes_the_gradient_on():
    for value in (jnp.nan, jnp.inf):
        gradient = jnp.array([value, 2.0])
        rule = novoclip.clip_by_global_norm(1.0, nonfinite="propagate")
        updates, state = rule.update(gradient, rule.init(gradient))
        np.testing.assert_array_equal(updates, gradient)
        assert int(state.nonfinite) == 1
    rule = novoclip.clip_by_value(1.0, nonfinite="propagate")
    gradient = jnp.array([jnp.nan, jnp.inf, 2.0])
    np.testing.assert_array_equal(rule.update(gradient, rule.init(gradient))[0], [jnp.nan, 1.0, 1.0])


def test_one_bad_block_is_zeroed_and_forgotten_alone():
    rule = novoclip.autoclip(50.0, window=3, per="tensor")
    good = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
    _, state = rule.update(good, rule.init(good))
    updates, after = rule.update({"a": jnp.array([jnp.inf, 1.0]), "b": jnp.array([2.0])}, state)
    assert not np.any(updates["a"])
    np.testing.assert_allclose(updates["b"], [1.5])
    np.testing.assert_array_equal(after.memory.history[0], state.memory.history[0])
    np.testing.assert_array_equal(after.memory.slot, [1, 2])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_orbax_restores_the_state_bit_for_bit(case, tmp_path):
    rule = case.transform()
    state = rule.init(random_tree())
    for seed in range(3):
        _, state = rule.update(random_tree(seed), state, random_tree())
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def metrics_after_one_step(transform, params):
    state = transform.init(params)
    _, state = jax.jit(transform.update)(jax.tree.map(jnp.ones_like, params), state, params)
    return novoclip.metrics(state)


def test_metrics_are_found_wherever_a_rule_may_stand():
    params = {"a": jnp.ones(4), "b": jnp.ones(9)}
    rule = novoclip.clip_by_global_norm(1.0)
    chain = optax.chain(rule, optax.adam(1e-3))
    halves = {"x": optax.chain(rule, optax.sgd(0.1)), "y": novoclip.clip_by_norm(1.0)}
    norm = np.sqrt(13)
    for transform, name, expected in (
        (chain, "clip/norm", norm),
        (optax.masked(chain, {"a": True, "b": False}), "clip/norm", 2.0),
        (optax.inject_hyperparams(novoclip.clip_by_global_norm)(max_norm=1.0), "clip/norm", norm),
        (optax.apply_if_finite(chain, 3), "clip/norm", norm),
        (optax.MultiSteps(chain, 1).gradient_transformation(), "clip/norm", norm),
        (optax.partition(halves, {"a": "x", "b": "y"}), "clip/inner_states/x/inner_state/0/norm", 2.0),
        (optax.named_chain(("first", rule), ("second", rule)), "clip/second/norm", 1.0),
        (novoclip.clip_by_norm(1.0), "clip/norm_max", 3.0),
        (novoclip.clip_by_norm(1.0), "clip/norm_mean", 2.5),
    ):
        np.testing.assert_allclose(metrics_after_one_step(transform, params)[name], expected, rtol=1e-6)
    assert novoclip.metrics(optax.adam(1e-3).init(params)) == {}


def test_metrics_read_an_nnx_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(novoclip.clip_by_norm(1.0), optax.sgd(0.1)), wrt=nnx.Param)
    gradients = nnx.grad(lambda model: jnp.sum(model(jnp.ones((4, 3)))))(model)
    optimizer.update(model, gradients)
    found = novoclip.metrics(optimizer.opt_state)
    assert int(found["clip/steps"]) == 1
    np.testing.assert_allclose(found["clip/norm_max"], np.sqrt(6 * 16), rtol=1e-6)


def test_paths_of_nnx_models_have_no_value_suffix():
    seen = []
    model = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    novoclip.groups(lambda path, leaf: seen.append(path) or path).norms(model)
    assert sorted(set(seen)) == ["bias", "kernel"]


def test_record_keeps_norms_only():
    with pytest.raises(ValueError, match=r"per must name blocks whose norms can be kept.*; got 'element'"):
        novoclip.record(per="element")
    state = run(novoclip.record(), [2.0, 5.0])
    np.testing.assert_allclose(state.norms, 5.0, rtol=1e-6)
    assert int(state.clipped) == 0
