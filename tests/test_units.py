"""Blocks that are slices of leaves: memories, what is shown, and leaves of every rank, whole or split."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import novoclip
from novoclip.slices import places_of
from tests.steps import compiled
from tests.test_collectives import collectives


def test_examples_teach_the_units_that_they_move():
    rule = novoclip.per_example(novoclip.autoclip(90.0, window=4, per="unit"))
    params = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}
    gradients = {"w": np.zeros((2, 2, 3), np.float32), "b": np.ones((2, 3), np.float32)}
    gradients["w"][0, 0], gradients["w"][1, 0] = [1, np.nan, 2], [3, 5, 7]
    _, state = jax.jit(lambda gradients, params: rule.update(gradients, rule.init(params), params))(gradients, params)
    of_b, of_w = map(np.asarray, state.limit_state.history.arrays)
    np.testing.assert_allclose(of_b[..., 0], [[np.sqrt(3)]], rtol=1e-6)
    # The mean of 1 and 3; 5 alone, since the other was NaN; the mean of 2 and 7.
    np.testing.assert_allclose(of_w[..., 0], [[[2.0, 5.0, 4.5]]], rtol=1e-6)


@pytest.mark.parametrize("spec", [P(None, "model", None), P("model", None, None), P(None, None, "model")])
@pytest.mark.parametrize("rule", [novoclip.agc(0.1), novoclip.autoclip(90.0, window=4, per="unit")])
def test_stacks_of_matrices_that_are_split_are_not_gathered(rule, spec):
    assert set(collectives(rule, spec, ((4, 16, 8), (4, 8, 16)))) <= {"all-reduce"}


@pytest.mark.parametrize(
    ("rule", "jit"),
    [
        (novoclip.agc(0.1), True),
        (novoclip.autoclip(90.0, window=4, per="unit"), True),
        (novoclip.agc(0.1), False),
        (novoclip.novograd(0.1, per="unit"), False),
    ],
)
def test_units_of_explicitly_split_leaves_outside_of_a_mesh_context(rule, jit):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
    numbers = np.arange(64, dtype=np.float32)
    whole = {"a": numbers[:32].reshape(4, 8) - 9, "b": numbers.reshape(2, 8, 4) - 20}
    specs = {"a": P(None, "x"), "b": P(None, "x", None)}
    split = {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in whole.items()}
    first = lambda tree: rule.update(tree, rule.init(tree), tree)[0]  # noqa: E731
    expected, found = jax.jit(first)(whole), (jax.jit(first) if jit else first)(split)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-5)


@pytest.mark.parametrize("rule", [novoclip.agc(0.1), novoclip.clip_by_norm(0.1, per="unit")], ids=["agc", "norm"])
def test_leaves_on_a_mesh_with_an_axis_of_one_device(rule):
    mesh = jax.make_mesh((1, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])
    whole = {"a": np.arange(24.0, dtype=np.float32).reshape(3, 1, 8), "b": np.ones((3, 1, 8), np.float32)}
    first = jax.jit(lambda tree: rule.update(tree, rule.init(tree), tree)[0])
    with jax.set_mesh(mesh):
        found = first(jax.device_put(whole, NamedSharding(mesh, P(None, "x", "y"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, first(whole))


@pytest.mark.usefixtures("x64")
def test_units_of_leaves_that_are_split_inside_shard_map_in_float64():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    rule = novoclip.agc(0.1, per=novoclip.units("auto", specs={"w": P(None, "x")}))
    whole = {"w": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)}
    first = lambda tree: rule.update(tree, rule.init(tree), tree)[0]  # noqa: E731
    specs = {"w": P(None, "x")}
    found = jax.jit(jax.shard_map(first, mesh=mesh, in_specs=(specs,), out_specs=specs))(whole)
    plain = novoclip.agc(0.1)
    expected, _ = jax.jit(lambda tree: plain.update(tree, plain.init(tree), tree))(whole)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)


def test_a_unit_that_is_not_finite_is_shown_beside_one_whose_excess_overflows():
    rule = compiled(novoclip.clip_by_norm(1e-30, per="unit"))
    gradients = {"w": np.float32([[1e10, np.nan, 1.0], [0.0, 0.0, 0.0]])}
    _, state = rule.update(gradients, rule.init(gradients))
    assert np.isnan(state.norms[0])
    assert np.isinf(state.limits[0])  # as it was: of a norm that is not finite, none is learned
    assert int(state.nonfinite) == 1


def test_a_machine_that_was_told_to_use_no_cpu_traces_large_matrices():
    code = """
import jax, jax.numpy as jnp, novoclip
from jax._src import xla_bridge
xla_bridge.register_backend_factory("other", xla_bridge.make_cpu_client, priority=500)
rule, params = novoclip.agc(0.1), {"w": jax.ShapeDtypeStruct((16384, 1024), jnp.float32)}
print(jax.eval_shape(rule.update, params, jax.eval_shape(rule.init, params), params)[0]["w"].shape)
"""
    environment = os.environ | {"JAX_PLATFORMS": "other"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "(16384, 1024)" in done.stdout


@pytest.mark.parametrize("optimizer", [novoclip.novoclip(0.1, per="tensor"), novoclip.amsgrad(0.1)])
def test_gradients_of_other_shapes_are_refused_by_what_follows_too(optimizer):
    optimizer = compiled(optimizer)
    state = optimizer.init({"w": jnp.zeros(1)})
    for wrong in ({"w": jnp.ones(3)}, {"v": jnp.ones(1)}):
        with pytest.raises(ValueError, match="gradients"):
            optimizer.update(wrong, state)


def test_a_rule_whose_update_was_replaced_is_not_taken_to_see_all():
    rule, params = novoclip.clip_by_global_norm(1.0), {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    bad = params | {"b": np.float32([1.0, np.nan])}

    def first_leaf(updates, state, params=None, **extra):
        del params, extra
        sent, state = rule.update({"a": updates["a"]}, state)
        return updates | sent, state

    whole = novoclip.resolve_measure("tree")
    partial = whole._replace(norms=lambda tree: whole.norms({"a": tree["a"]}), name="first leaf")
    for clip in (rule._replace(update=first_leaf), novoclip.clip_by_limit(partial, novoclip.limits.constant(1.0))):
        optimizer = compiled(novoclip.adam(0.1, clip=clip))
        updates, state = optimizer.update(bad, optimizer.init(params))
        assert int(state.nonfinite) == 1
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


def test_a_state_of_this_version_is_upgraded_to_itself():
    rule = compiled(novoclip.autoclip(90.0, window=4, per="unit"))
    gradients = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
    _, state = rule.update(gradients, rule.init(gradients))
    jax.tree.map(np.testing.assert_array_equal, novoclip.upgrade_state(state, rule.init(gradients)), state)


def test_the_unit_that_is_shown_is_the_one_furthest_above_its_limit():
    gradients = {"w": jnp.array([[3.0, 1.0, 8.0], [4.0, 1.0, 6.0]]), "b": jnp.array([5.0, 12.0])}
    params = {"w": jnp.array([[1.0, 0.01, 10.0], [0.0, 0.0, 0.0]]), "b": jnp.array([0.0, 26.0])}
    rule = novoclip.agc(1.0, eps=1e-3)
    _, state = jax.jit(rule.update)(gradients, rule.init(params), params)
    # Of b 13 with limit 26; of w norms 5, 1.41, 10 with limits 1, 0.01, 10.
    np.testing.assert_allclose(state.norms, [13.0, np.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(state.limits, [26.0, 0.01], rtol=1e-6)
    np.testing.assert_allclose(state.fraction, 2 / 4)
    unlimited = compiled(novoclip.record(per="unit"))
    _, state = unlimited.update(gradients, unlimited.init(params))
    np.testing.assert_allclose(state.norms, [13.0, 10.0], rtol=1e-6)
    assert np.all(np.isinf(state.limits))
    _, state = unlimited.update(gradients | {"b": jnp.array([jnp.nan, 1.0])}, unlimited.init(params))
    assert np.isnan(state.norms[0])
    assert int(state.nonfinite) == 1


def test_units_in_optax_wrappers():
    optimizer = compiled(optax.MultiSteps(optax.chain(novoclip.agc(0.1), novoclip.novograd(0.1, per="unit")), 2))
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update(params, state, params)
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("make", [novoclip.adagc, novoclip.clip_by_second_moment], ids=["adagc", "second_moment"])
def test_states_of_units_made_outside_of_shard_map_fit_inside(make):
    """There a leaf has the shape of its part, which must not change the order of leaves."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    shapes = {"a": (8, 4), "b": (4, 4), "c": (8, 4)}
    params = {name: np.full(shape, i + 1.0, np.float32) for i, (name, shape) in enumerate(shapes.items())}
    specs = {"a": P("x", None), "b": P(), "c": P()}
    rule = make(2.0, per=novoclip.units("flax", specs=specs))
    inside = jax.shard_map(
        lambda gradients, state: rule.update(gradients, state, gradients),
        mesh=mesh,
        in_specs=(specs, P()),
        out_specs=(specs, P()),
    )

    @jax.jit
    def outside_and_inside(params):
        state = rule.init(params)
        return rule.update(params, state, params)[0], inside(params, state)[0]

    expected, found = outside_and_inside(params)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-6)


def test_stacks_of_small_leaves_keep_their_places():
    """Leaves that are alike are summed as one stack; what a state shows is in the order of the leaves."""
    shapes = [(3,), (5,), (3,), (2, 4), (3,), (5,), (3,), (5,), (2, 4), (5,)]
    leaves = [np.full(shape, i + 1.0, np.float32) for i, shape in enumerate(shapes)]
    norms = jax.jit(novoclip.units("flax").norms)(leaves)
    for array, places in zip(norms.arrays, places_of(norms), strict=True):
        for row, place in zip(array, places, strict=True):
            expected = (place + 1.0) * np.sqrt(leaves[place].shape[0])
            np.testing.assert_allclose(row, np.full(row.shape, expected), rtol=1e-6)
    assert [list(places) for places in places_of(norms)] == [[0, 1, 2, 4, 5, 6, 7, 9], [3, 8]]
