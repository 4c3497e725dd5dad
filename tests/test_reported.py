"""Defects that a review found, each with the smallest case that shows it."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled, first_updates, steps_of


def once(rule, gradient):
    return first_updates([rule], gradient)[0]


def at(step, tree):
    return jax.tree.map(lambda leaf: leaf[step], tree)


def test_a_finite_spike_in_the_warm_up_does_not_end_zclip():
    sizes = [1e25 if step == 3 else 0.01 * (1 + 0.1 * np.sin(step)) for step in range(40)]
    ((updates, states),) = steps_of([novoclip.zclip()], np.float32(np.outer(sizes, [3.0, 4.0])))
    assert np.isfinite(states.limits[-1])
    assert np.all(updates[-1] > 0)


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
    sizes = np.array([(1 + 0.1 * np.sin(step)) * (step >= 25 and step % 20 == 0) for step in range(400)])
    for name, (updates, _) in zip(rules, steps_of(rules.values(), np.float32(sizes[:, None])), strict=True):
        for step, (size, (found,)) in enumerate(zip(sizes, updates, strict=True)):
            assert found >= 0.9 * size, f"{name} at step {step}: {size} became {found}"


def test_a_tiny_first_gradient_does_not_hold_the_second_moment_down():
    rule = novoclip.clip_by_second_moment(3.0, form="proportional")
    for late in (0, 300):
        gradients = [[0.0 if step < late else 1e-6 if step == late else 1.0] for step in range(late + 200)]
        ((updates, _),) = steps_of([rule], np.float32(gradients))
        assert float(updates[-1, 0]) == 1.0


@jax.jit
def largest_clipped_to(limit, gradient):
    rule = novoclip.clip_by_norm(limit, norm="max")
    return rule.update(gradient, rule.init(gradient))[0]


@jax.jit
def scaled_to(scale, gradient):
    rule = novoclip.normalize_by_norm(scale)
    return rule.update(gradient, rule.init(gradient))[0]


@pytest.mark.parametrize(("size", "limit"), [(3e36, 0.01), (1.5e38, 1.0), (3e38, 1e-3)])
def test_norms_more_than_1e38_times_their_limit_are_clipped_to_it(size, limit):
    updates = largest_clipped_to(np.float32(limit), np.float32([size, -size / 2]))
    np.testing.assert_allclose(updates, [limit, -limit / 2], rtol=1e-6)


@pytest.mark.parametrize(("size", "scale"), [(3e-30, 1e10), (1e-30, 1e25), (1e-10, 1e28), (3e36, 1e-2)])
def test_norms_are_scaled_by_more_than_a_number_can_hold(size, scale):
    updates = scaled_to(np.float32(scale), np.float32([0.6 * size, 0.8 * size]))
    np.testing.assert_allclose(updates, [0.6 * scale, 0.8 * scale], rtol=1e-6)


def test_zeros_stay_zeros_under_a_factor_beyond_all_numbers():
    updates = np.asarray(scaled_to(np.float32(3e37), np.float32([2e-9, 0.0])))
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
    mixed = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float64)}
    narrow = jax.tree.map(np.float32, mixed)
    sizes = np.array([[1.0], [5e100], [2.0]])
    gradients = {"a": sizes * np.array([3.0, 4.0]), "b": sizes * np.ones(3)}

    def run(params, gradients):
        def step(state, gradient):
            updates, state = rule.update(gradient, state, params)
            return state, updates

        start = rule.init(params)
        with jax.numpy_dtype_promotion("strict"):
            return start, *lax.scan(step, start, gradients)

    for start, state, updates in jax.jit(lambda *given: (run(mixed, *given), run(narrow, *given)))(gradients):
        assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, start)
        for leaf in jax.tree.leaves(updates):
            assert leaf.dtype == jnp.float64
            assert np.all(np.isfinite(leaf) & (np.asarray(leaf) != 0))
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
    for updates, states in steps_of(rules, np.float32([[0.3, 0.4]] * 3)):
        before, after = at(0, states), at(1, states)
        assert not np.any(at(1, updates))
        assert int(after.nonfinite) == 1
        assert int(after.clipped) == int(before.clipped)
        jax.tree.map(np.testing.assert_array_equal, after.limit_state, before.limit_state)
        assert np.all(at(2, updates) > 0)


def test_a_decay_that_is_nan_teaches_nothing():
    decay = lambda step: jnp.where(step == 1, jnp.nan, 0.9)  # noqa: E731
    rules = (
        novoclip.clip_by_second_moment(1.0, decay),
        novoclip.clip_by_second_moment(1.0, decay, form="proportional"),
        novoclip.zclip(warmup=1, decay=decay),
    )
    for _, states in steps_of(rules, np.float32([[0.3, 0.4]] * 2)):
        before, after = at(0, states.limit_state), at(1, states.limit_state)
        for name in set(before._fields) - {"seen"}:
            np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-6)


@pytest.mark.parametrize("per", ["tree", "element"])
def test_arguments_that_share_names_with_a_limits_own_are_passed_by(per):
    rule = novoclip.autoclip(90.0, window=9, per=per)
    extra = {"norms": 1, "param_norms": 3, "step": 4, "limit": 5}
    updates, state = jax.jit(lambda leaf: rule.update(leaf, rule.init(leaf), None, **extra))(np.ones(2, np.float32))
    np.testing.assert_array_equal(updates, 1)
    assert int(state.steps) == 1


def test_an_empty_tree_has_no_mean_norm():
    rule = novoclip.clip_by_norm(1.0)
    found = jax.jit(lambda: novoclip.metrics(rule.update({}, rule.init({}))[1]))()
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
def test_float32_leaves_stay_right_beside_extreme_float64_ones():
    rule = compiled(novoclip.clip_by_global_norm(1e-3))
    for size in (1e100, 1e-100):
        gradient = {"a": np.array([1.0, 0.0], np.float32), "b": np.full(1, size)}
        updates, _ = rule.update(gradient, rule.init(gradient))
        assert all(np.all(np.isfinite(leaf)) for leaf in updates.values())
        assert np.asarray(updates["a"])[1] == 0
    beside = {"a": np.full(2, 2e38, np.float32), "b": np.ones(2)}
    np.testing.assert_allclose(once(novoclip.clip_by_norm(1e-3), beside)["a"], 1e-3 / np.sqrt(2), rtol=1e-6)
    beside = {"a": np.full(2, 1e-30, np.float32), "b": np.ones(2)}
    updates = once(novoclip.normalize_by_norm(1e20, per="tensor"), beside)
    np.testing.assert_allclose(updates["a"], 1e20 / np.sqrt(2), rtol=1e-6)


def test_small_numbers_of_a_large_gradient_come_back_bit_for_bit():
    gradient = np.array([2e9, 1e-18, 1e-37], np.float32)
    rules = novoclip.clip_by_norm(1e10), novoclip.autoclip(90.0), novoclip.zclip(max_norm=jnp.inf)
    for updates in first_updates(rules, gradient):
        np.testing.assert_array_equal(updates, gradient)


@given(old=st.integers(-30, 37), new=st.integers(-36, 37))
def test_any_norm_can_be_scaled_to_any_other(old, new):
    direction = np.array([0.6, -0.8])
    updates = scaled_to(np.float32(10.0**new), np.float32(direction * 10.0**old))
    np.testing.assert_allclose(np.asarray(updates, np.float64), direction * 10.0**new, rtol=2e-6)


def test_infinities_are_propagated_when_asked():
    gradient = np.array([np.inf, 1.0, -np.inf], np.float32)
    rules = (
        novoclip.clip_by_second_moment(3.0, per="tensor", nonfinite="propagate"),
        novoclip.clip_by_second_moment(3.0, form="proportional", nonfinite="propagate"),
        novoclip.clip_by_norm(jnp.inf, per="element", nonfinite="propagate"),
    )
    for updates in first_updates(rules, gradient):
        np.testing.assert_array_equal(updates, gradient)


def test_a_proportional_limit_below_one_deviation_is_refused():
    with pytest.raises(ValueError, match=r"threshold must be a number in \[1, inf\].*; got 0.5"):
        novoclip.clip_by_second_moment(0.5, form="proportional")


def test_any_real_number_is_a_threshold():
    for updates in first_updates(
        [novoclip.clip_by_norm(number) for number in (Fraction(1, 2), 10**30)], np.float32([0.1])
    ):
        np.testing.assert_allclose(updates, [0.1])
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
