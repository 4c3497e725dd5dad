"""Norms and bounds: precision, range, many leaves, and what they cost."""

import functools

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from novoclip.testing.subject import of_dtype, true_norms
from tests import programs
from tests.steps import compiled


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_norm_of_1e8_numbers_is_right_to_1e6(dtype):
    part = np.random.default_rng(0).normal(size=10**6).astype(np.float32)
    leaf = jnp.tile(jnp.asarray(part, dtype), 100)
    once = np.asarray(jnp.asarray(part, dtype), np.float64)
    found = novoclip.resolve_measure("tree").norms({"w": leaf})
    np.testing.assert_allclose(float(found), 10 * np.linalg.norm(once), rtol=1e-6)


@pytest.mark.parametrize(
    ("leaves", "kinds"),
    [
        (400, ("float16", "bfloat16", "float32")),
        # A program of 4000 leaves takes a minute to compile, and two gigabytes.
        pytest.param(4000, ("float16", "bfloat16", "float32"), marks=pytest.mark.full),
        pytest.param(4000, ("float16",), marks=pytest.mark.full),
        pytest.param(4000, ("bfloat16",), marks=pytest.mark.full),
    ],
)
def test_the_bound_holds_with_many_leaves(leaves, kinds):
    generator = np.random.default_rng(0)
    gradients = [of_dtype(generator.normal(size=7), kinds[i % len(kinds)]) for i in range(leaves)]
    limit = 0.37
    rule = novoclip.clip_by_global_norm(limit)
    updates, state = jax.jit(rule.update)(gradients, rule.init(gradients))
    np.testing.assert_allclose(state.norms, true_norms(gradients, "tree", "l2"), rtol=1e-6)
    eps = max(float(jnp.finfo(kind).eps) for kind in kinds)
    after = true_norms(updates, "tree", "l2")
    assert limit * (1 - eps - 1e-6) <= after <= limit * (1 + eps + 1e-6)


@pytest.mark.parametrize("norm", ["l1", "l2", "max", "rms"])
@given(exponent=st.integers(-31, 37), seed=st.integers(0, 100))
def test_norms_scale_with_the_gradient_over_the_whole_range(norm, exponent, seed):
    leaf = np.random.default_rng(seed).normal(size=5).astype(np.float32) * np.float32(10.0**exponent)
    found = novoclip.resolve_measure("tensor", norm).norms([jnp.asarray(leaf), jnp.ones(2), jnp.zeros(3)])
    expected = true_norms([leaf, np.ones(2), np.zeros(3)], "tensor", norm)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=1e-6)


@jax.jit
def within_ball(c, tree):
    rule = novoclip.clip_by_global_norm(c)
    return rule.update(tree, rule.init(tree))[0]


@given(seed=st.integers(0, 10**6), c=st.floats(0.01, 10.0), scale=st.floats(1e-3, 1e3))
def test_a_hard_clip_is_the_projection_onto_a_ball(seed, c, scale):
    generator = np.random.default_rng(seed)
    draw = lambda: {"a": np.float32(scale * generator.normal(size=4)), "b": np.ones(1, np.float32)}  # noqa: E731
    one, two = draw(), draw()
    clip = lambda tree: jax.device_get(within_ball(np.float32(c), tree))  # noqa: E731
    distance = lambda x, y: true_norms(jax.tree.map(np.subtract, x, y), "tree", "l2")  # noqa: E731
    assert distance(clip(one), clip(two)) <= distance(one, two) * (1 + 1e-6) + 1e-6 * c
    assert distance(clip(clip(one)), clip(one)) <= 1e-6 * c
    cosine = sum(float(np.vdot(one[name], clip(one)[name])) for name in one)
    assert cosine >= true_norms(one, "tree", "l2") * true_norms(clip(one), "tree", "l2") * (1 - 1e-5)


HALF = compiled(novoclip.normalize_by_norm(0.5))


@pytest.mark.parametrize(
    ("dtype", "size"), [("float16", 6e4), ("float16", 6e-8), ("float32", 1e30), ("bfloat16", 1e-30)]
)
def test_extreme_gradients_keep_their_direction(dtype, size):
    gradient = jnp.asarray([size, -size, 0.0], dtype)
    unit = np.array([1, -1, 0]) / np.sqrt(2)
    updates, _ = HALF.update(gradient, HALF.init(gradient))
    np.testing.assert_allclose(np.asarray(updates, np.float64), 0.5 * unit, rtol=float(jnp.finfo(dtype).eps))


def step_memory(rule, dtype="float32"):
    """Temporary bytes of rule + Adam on 64M parameters, in copies of the gradients; nothing is allocated."""
    optimizer = optax.chain(rule, optax.adam(1e-3))
    params = {"w": jax.ShapeDtypeStruct((8192, 8192), dtype)}
    state = jax.eval_shape(optimizer.init, params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    memory = step.lower(params, state, params).compile().memory_analysis()
    return memory.temp_size_in_bytes / (params["w"].size * params["w"].dtype.itemsize)


@functools.cache
def memory_of_adam(dtype="float32"):
    return step_memory(optax.identity(), dtype)


@programs.WRITES_IN_PLACE
@pytest.mark.parametrize(
    "rule",
    [
        novoclip.clip_by_global_norm(1.0),
        novoclip.clip_by_norm(1.0),
        novoclip.clip_by_norm(1.0, norm="rms"),
        novoclip.clip_by_value(1.0),
        novoclip.clip_by_value(1.0, count=True),
        novoclip.autoclip(90.0),
        novoclip.zclip(),
        novoclip.record(),
    ],
)
def test_a_step_makes_no_copy_of_the_gradients(rule):
    assert step_memory(rule) <= memory_of_adam() + 0.01


@programs.WRITES_IN_PLACE
@pytest.mark.parametrize(
    "rule", [novoclip.clip_by_global_norm(1.0), novoclip.clip_by_value(1.0), novoclip.autoclip(90.0)]
)
def test_a_step_makes_one_copy_of_bfloat16_gradients(rule):
    assert step_memory(rule, "bfloat16") <= memory_of_adam("bfloat16") + 1.01


@programs.WRITES_IN_PLACE
@pytest.mark.parametrize(
    "rule",
    [
        novoclip.clip_by_second_moment(1.0),
        novoclip.clip_by_second_moment(3.0, form="proportional"),
        novoclip.clip_by_running_mean(per="element"),
        novoclip.clip_by_running_quantile(0.9, per="element"),
    ],
)
def test_a_limit_that_elements_learn_costs_one_copy(rule):
    """That of the limits: another transform reads them after the state was overwritten."""
    assert step_memory(rule) <= memory_of_adam() + 1.01


def test_optax_makes_one_and_two():
    for dtype, copies in (("float32", 1), ("bfloat16", 2)):
        more = step_memory(optax.clip_by_global_norm(1.0), dtype) - memory_of_adam(dtype)
        assert more >= copies - 0.01


@pytest.mark.parametrize(
    ("gradient", "turns", "layout"), [(1.0, 1, (1, 11)), (0.0, 1, (1, 12)), (1e20, 3, (1, 13)), (1e-30, 3, (1, 14))]
)
def test_only_norms_out_of_range_cost_another_pass(gradient, turns, layout, monkeypatch):
    taken = []
    loop = jax.lax.while_loop

    def counted(unfinished, take, start):
        def noted(carry):
            jax.debug.callback(lambda: taken.append(1))
            return take(carry)

        return loop(unfinished, noted, start)

    monkeypatch.setattr(jax.lax, "while_loop", counted)
    # Of a shape that nothing else has: norms of this layout are then compiled here, with the count.
    tree = {"a": jnp.full(layout, gradient), "b": jnp.ones(layout)}
    jax.block_until_ready(novoclip.resolve_measure("tensor").norms(tree))
    jax.effects_barrier()
    assert len(taken) == turns


def test_sharded_arrays_give_the_norm_of_the_whole_gradient():
    mesh = jax.make_mesh((8,), ("devices",))
    generator = np.random.default_rng(0)
    whole = {"a": np.float32(generator.normal(size=(16, 8))), "b": np.float32(generator.normal(size=8))}
    specs = {"a": jax.P("devices", None), "b": jax.P("devices")}
    sharded = jax.tree.map(lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)), whole, specs)
    rules = [novoclip.clip_by_norm(0.5, per=per) for per in ("tree", "tensor", "element")]
    clip = jax.jit(lambda tree: [rule.update(tree, rule.init(tree))[0] for rule in rules])
    for expected, found in zip(clip(whole), clip(sharded), strict=True):
        assert found["a"].sharding.is_equivalent_to(sharded["a"].sharding, 2)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_pmap_with_averaged_gradients():
    rule = compiled(novoclip.clip_by_global_norm(0.5))
    local = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)

    def step(gradient, state):
        return rule.update(jax.lax.pmean(gradient, "devices"), state)

    states = jax.tree.map(lambda leaf: np.stack([leaf] * 8), rule.init(local[0]))
    updates, states = jax.pmap(step, axis_name="devices")(local, states)
    expected, state = rule.update(np.mean(local, 0), rule.init(local[0]))
    np.testing.assert_allclose(updates, np.stack([expected] * 8), rtol=1e-6)
    np.testing.assert_allclose(states.norms, np.stack([state.norms] * 8), rtol=1e-6)


def jacobian(rule, at):
    return np.asarray(jax.jit(jax.jacrev(lambda gradient: rule.update(gradient, rule.init(at))[0]))(at))


def test_the_derivative_of_a_value_clip_is_1_inside_and_0_outside():
    found = jacobian(novoclip.clip_by_value(1.0), jnp.array([0.0, 0.5, -0.5, 2.0, -2.0]))
    np.testing.assert_array_equal(found, np.diag([1.0, 1.0, 1.0, 0.0, 0.0]))


def test_the_derivative_of_a_norm_clip_is_that_of_the_projection():
    rule = novoclip.clip_by_global_norm(0.5)
    np.testing.assert_allclose(jacobian(rule, jnp.array([0.1, -0.2, 0.0])), np.eye(3), atol=1e-7)
    for scale in (1.0, 1e30):
        at = np.array([3.0, -4.0, 1.0])
        unit = at / np.linalg.norm(at)
        expected = 0.5 / np.linalg.norm(at) * (np.eye(3) - np.outer(unit, unit))
        found = jacobian(rule, jnp.asarray(at * scale, jnp.float32)).astype(np.float64) * scale
        np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("norm", ["l1", "l2", "max", "rms"])
def test_a_norm_of_what_is_not_finite_is_neither_finite_nor_negative(norm, value):
    gradients = {"long": np.ones(5000, np.float32), "short": np.ones(3, np.float32)}
    gradients["long"][7] = value
    norms = np.asarray(novoclip.resolve_measure("tensor", norm).norms(gradients))
    assert np.isnan(norms[0]) if np.isnan(value) else norms[0] == np.inf
    assert np.isfinite(norms[1])
