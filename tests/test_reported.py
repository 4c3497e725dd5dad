"""Defects that a review found, each with the smallest case that shows it."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled


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


def test_rare_gradients_do_not_teach_a_limit_of_zero():
    rules = {
        "autoclip": novoclip.autoclip(90.0, window=50, per="element"),
        "zclip": novoclip.zclip(warmup=5, max_norm=jnp.inf, per="tensor"),
        "zclip by mean": novoclip.zclip(warmup=5, max_norm=jnp.inf, mode="mean", per="tensor"),
        "zclip by percentile": novoclip.zclip(warmup=5, max_norm=jnp.inf, mode="percentile", per="tensor"),
        "second moment": novoclip.clip_by_second_moment(3.0, form="proportional"),
    }
    for name, rule in rules.items():
        update, state = jax.jit(rule.update), rule.init(jnp.zeros(1))
        for step in range(400):
            size = (1 + 0.1 * np.sin(step)) * (step >= 25 and step % 20 == 0)
            updates, state = update(jnp.array([size], jnp.float32), state)
            assert float(updates[0]) >= 0.9 * size, f"{name} at step {step}: {size} became {updates}"


def test_a_tiny_first_gradient_does_not_hold_the_second_moment_down():
    rule = novoclip.clip_by_second_moment(3.0, form="proportional")
    for late in (0, 300):
        update, state = jax.jit(rule.update), rule.init(jnp.zeros(1))
        for step in range(late + 200):
            updates, state = update(jnp.array([0.0 if step < late else 1e-6 if step == late else 1.0]), state)
        assert float(updates[0]) == 1.0


@pytest.mark.parametrize(("size", "limit"), [(3e36, 0.01), (1.5e38, 1.0), (3e38, 1e-3)])
def test_norms_more_than_1e38_times_their_limit_are_clipped_to_it(size, limit):
    updates = once(novoclip.clip_by_norm(limit, norm="max"), jnp.array([size, -size / 2], jnp.float32))
    np.testing.assert_allclose(updates, [limit, -limit / 2], rtol=1e-6)


@pytest.mark.parametrize(("size", "scale"), [(3e-30, 1e10), (1e-30, 1e25), (1e-10, 1e28), (3e36, 1e-2)])
def test_norms_are_scaled_by_more_than_a_number_can_hold(size, scale):
    updates = once(novoclip.normalize_by_norm(scale), jnp.array([0.6 * size, 0.8 * size], jnp.float32))
    np.testing.assert_allclose(updates, [0.6 * scale, 0.8 * scale], rtol=1e-6)


def test_zeros_stay_zeros_under_a_factor_beyond_all_numbers():
    updates = once(novoclip.normalize_by_norm(3e37), jnp.array([2e-9, 0.0], jnp.float32))
    assert np.all(np.isfinite(updates))
    assert updates[0] > 1e28
    assert updates[1] == 0


def test_a_norm_beyond_float16_gives_its_largest_number():
    updates = once(novoclip.normalize_by_norm(1e5), jnp.array([1.0, 1e-3], jnp.float16))
    np.testing.assert_array_equal(updates[0], np.float16(65504))
    np.testing.assert_allclose(updates[1], 100.0, rtol=1e-3)
    kept = once(novoclip.normalize_by_norm(1e5, nonfinite="propagate"), jnp.array([jnp.inf, 1.0], jnp.float16))
    np.testing.assert_array_equal(kept, [np.inf, 1.0])


DOUBLE = {
    "clip_by_value": novoclip.clip_by_value(1.0, count=True),
    "clip_by_norm": novoclip.clip_by_norm(1.0),
    "autoclip": novoclip.autoclip(90.0, per="element", window=3),
    "autoclip, per tensor": novoclip.autoclip(90.0, per="tensor", window=3),
    "zclip": novoclip.zclip(per="element", warmup=2),
    "second moment": novoclip.clip_by_second_moment(1.0, count=True),
    "second moment, per tensor": novoclip.clip_by_second_moment(1.0, per="tensor", count=True),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", DOUBLE.values(), ids=DOUBLE.keys())
def test_gradients_may_be_wider_than_the_parameters(rule):
    rule = compiled(rule)
    mixed = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(3, jnp.float64)}
    for params in (mixed, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mixed)):
        state = rule.init(params)
        types = jax.tree.map(jnp.result_type, state)
        for size in (1.0, 5e100, 2.0):
            gradients = {"a": size * jnp.array([3.0, 4.0], jnp.float64), "b": size * jnp.ones(3, jnp.float64)}
            with jax.numpy_dtype_promotion("strict"):
                updates, state = rule.update(gradients, state, params)
            assert jax.tree.map(jnp.result_type, state) == types
            for leaf in jax.tree.leaves(updates):
                assert leaf.dtype == jnp.float64
                assert np.all(np.isfinite(leaf) & (leaf != 0))
    assert int(state.steps) == 3


def test_a_schedule_that_gives_nan_is_counted_and_gives_zeros():
    schedule = lambda step: jnp.where(step == 1, jnp.nan, 1.0)  # noqa: E731
    rules = (
        novoclip.clip_by_global_norm(schedule),
        novoclip.clip_by_norm(schedule, shape="drop"),
        novoclip.normalize_by_norm(schedule),
        novoclip.clip_by_value(schedule, count=True),
        novoclip.autoclip(lambda step: 50 * schedule(step)),
        novoclip.clip_by_second_moment(schedule, per="tensor", count=True),
    )
    for rule in map(compiled, rules):
        state = rule.init(jnp.zeros(2))
        _, state = rule.update(jnp.array([0.3, 0.4]), state)
        updates, after = rule.update(jnp.array([0.3, 0.4]), state)
        assert not np.any(updates)
        assert int(after.nonfinite) == 1
        assert int(after.clipped) == int(state.clipped)
        jax.tree.map(np.testing.assert_array_equal, after.limit_state, state.limit_state)
        updates, _ = rule.update(jnp.array([0.3, 0.4]), after)
        assert np.all(np.asarray(updates) > 0)


def test_a_decay_that_is_nan_teaches_nothing():
    for make in (
        lambda decay: novoclip.clip_by_second_moment(1.0, decay),
        lambda decay: novoclip.clip_by_second_moment(1.0, decay, form="proportional"),
        lambda decay: novoclip.zclip(warmup=1, decay=decay),
    ):
        rule = compiled(make(lambda step: jnp.where(step == 1, jnp.nan, 0.9)))
        state = rule.init(jnp.zeros(2))
        _, state = rule.update(jnp.array([0.3, 0.4]), state)
        _, after = rule.update(jnp.array([0.3, 0.4]), state)
        for name in set(state.limit_state._fields) - {"seen"}:
            np.testing.assert_allclose(getattr(after.limit_state, name), getattr(state.limit_state, name), rtol=1e-6)


def test_arguments_that_share_names_with_a_limits_own_are_passed_by():
    rule = novoclip.autoclip(90.0)
    extra = {"norms": 1, "param_norms": 3, "step": 4}
    updates, state = rule.update(jnp.ones(2), rule.init(jnp.ones(2)), None, **extra)
    np.testing.assert_array_equal(updates, 1)
    assert int(state.steps) == 1


def test_an_empty_tree_has_no_mean_norm():
    rule = novoclip.clip_by_norm(1.0)
    found = novoclip.metrics(rule.update({}, rule.init({}))[1])
    assert all(np.isfinite(value) for value in found.values())


def test_axes_may_be_any_integers_and_nothing_else():
    found = novoclip.units(np.int64(0)).norms({"w": jnp.array([[3.0], [4.0]])})
    np.testing.assert_allclose(found.arrays, [[[[5.0]]]], rtol=1e-6)
    for wrong, error in ((1.5, TypeError), (None, TypeError), ("0", ValueError)):
        with pytest.raises(error, match="axes must be"):
            novoclip.units(wrong)


def test_integers_that_are_arrays_say_how_to_inject():
    for make in (novoclip.autoclip, novoclip.zclip):
        arguments = {"percentile": 90.0, "window": 5} if make is novoclip.autoclip else {"warmup": 5}
        with pytest.raises(TypeError, match="static_args"):
            optax.inject_hyperparams(make)(**arguments).init(jnp.ones(1))


@pytest.mark.usefixtures("x64")
def test_the_margin_of_zclip_may_be_any_number():
    for eps in (np.float64(1e-6), jnp.float32(1e-6), lambda step: 1e-6):
        rule = novoclip.zclip(eps=eps, per="element")
        params = jnp.ones(2, jnp.float32)
        jax.eval_shape(rule.update, params, rule.init(params))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [1e100, 1e-100])
def test_float32_leaves_stay_right_beside_extreme_float64_ones(size):
    once_clipped = once(
        compiled(novoclip.clip_by_global_norm(1e-3)), {"a": jnp.array([1.0, 0.0], jnp.float32), "b": jnp.full(1, size)}
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in once_clipped.values())
    assert once_clipped["a"][1] == 0
    beside = {"a": jnp.full(2, 2e38, jnp.float32), "b": jnp.ones(2)}
    np.testing.assert_allclose(once(compiled(novoclip.clip_by_norm(1e-3)), beside)["a"], 1e-3 / np.sqrt(2), rtol=1e-6)
    beside = {"a": jnp.full(2, 1e-30, jnp.float32), "b": jnp.ones(2)}
    updates = once(compiled(novoclip.normalize_by_norm(1e20, per="tensor")), beside)
    np.testing.assert_allclose(updates["a"], 1e20 / np.sqrt(2), rtol=1e-6)


def test_small_numbers_of_a_large_gradient_come_back_bit_for_bit():
    gradient = jnp.array([2e9, 1e-18, 1e-37], jnp.float32)
    for rule in (novoclip.clip_by_norm(1e10), novoclip.autoclip(90.0), novoclip.zclip(max_norm=jnp.inf)):
        np.testing.assert_array_equal(once(rule, gradient), gradient)


@given(old=st.integers(-30, 37), new=st.integers(-36, 37))
def test_any_norm_can_be_scaled_to_any_other(old, new):
    direction = np.array([0.6, -0.8])
    gradient = jnp.asarray(direction * 10.0**old, jnp.float32)
    updates = once(novoclip.normalize_by_norm(10.0**new), gradient)
    np.testing.assert_allclose(np.asarray(updates, np.float64), direction * 10.0**new, rtol=2e-6)


def test_infinities_are_propagated_when_asked():
    gradient = jnp.array([jnp.inf, 1.0, -jnp.inf])
    for rule in (
        novoclip.clip_by_second_moment(3.0, per="tensor", nonfinite="propagate"),
        novoclip.clip_by_second_moment(3.0, form="proportional", nonfinite="propagate"),
        novoclip.clip_by_norm(jnp.inf, per="element", nonfinite="propagate"),
    ):
        np.testing.assert_array_equal(once(rule, gradient), gradient)


def test_a_proportional_limit_below_one_deviation_is_refused():
    with pytest.raises(ValueError, match=r"threshold must be a number in \[1, inf\].*; got 0.5"):
        novoclip.clip_by_second_moment(0.5, form="proportional")


def test_any_real_number_is_a_threshold():
    for number in (Fraction(1, 2), 10**30):
        rule = novoclip.clip_by_norm(number)
        np.testing.assert_allclose(once(rule, jnp.array([0.1]))[0], 0.1)
    with pytest.raises(TypeError, match="count must be True or False; got 'no'"):
        novoclip.clip_by_value(1.0, count="no")
    with pytest.raises(TypeError, match="clip_by_value"):
        novoclip.clip_by_limit(1.0)
    with pytest.raises(TypeError, match="limit must be a Limit"):
        novoclip.clip_by_limit("tree")


def test_parameters_of_other_blocks_are_refused():
    relative = novoclip.Limit(lambda norms: (), lambda norms, state, sizes=None, **extra: (sizes, state), True)
    gradients = {"a": jnp.ones(2), "b": jnp.ones(3)}
    rule = novoclip.clip_by_limit("tensor", relative)
    with pytest.raises(ValueError, match="params must have the structure of the updates"):
        rule.update(gradients, rule.init(gradients), {"a": jnp.ones(2)})
    by_unit = novoclip.clip_by_limit("unit", relative)
    with pytest.raises(
        ValueError, match=r"the parameters have blocks of shape \[\(1, 1, 2\)\], the gradients \[\(1, 1, 3\)\]"
    ):
        by_unit.update(jnp.ones((2, 3)), by_unit.init(jnp.ones((2, 3))), jnp.ones((2, 2)))


@pytest.mark.usefixtures("x64")
def test_arctan_reaches_its_limit_in_float64():
    updates = once(novoclip.clip_by_norm(1.0, norm="max", shape="arctan"), jnp.array([1e20]))
    np.testing.assert_allclose(updates, 1.0, rtol=1e-15)
