"""Stochastic rounding has the mean of the exact sum, the same bits in every run and on every device that counts."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from novoclip.origin import made_by
from novoclip.precision.stochastic import StochasticRoundingState, stochastic_rounding, stochastically_rounded
from tests.programs import SUMS_IN_ONE_DTYPE
from tests.steps import compiled

rounded = jax.jit(stochastically_rounded, static_argnums=1)


def draw(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)


def wide(array):
    return np.asarray(array, np.float32).astype(np.float64)


def neighbours(x, dtype):
    """The numbers of the dtype next to x, below and above, from NumPy's rounding and nextafter."""
    near = np.float64(x).astype(dtype)
    if dtype == np.float16:
        below, above = np.nextafter(near, dtype(-np.inf)), np.nextafter(near, dtype(np.inf))
    else:
        below, above = (np.asarray(ml_dtypes.bfloat16(np.nextafter(near, dtype(end)))) for end in (-np.inf, np.inf))
    low = near if float(near) <= x else below
    high = near if float(near) >= x else above
    return float(low), float(high)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("x", [1.001, -0.3333, 2.9e-6, -5.3e-5, 1024.7, 0.99999])
def test_each_neighbour_is_taken_as_often_as_the_other_is_far(dtype, x):
    x = float(np.float32(x))
    low, high = neighbours(x, dtype)
    found = wide(rounded(np.full(10**6, x, np.float32), dtype, draw(10**6)))
    assert np.all((found == low) | (found == high))
    share = (x - low) / (high - low)
    error = np.sqrt(share * (1 - share) / 10**6)
    assert abs(np.mean(found == high) - share) <= 3 * error + 1e-12
    assert abs(found.mean() - x) <= 3 * error * (high - low) + 1e-12 * abs(x)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_numbers_of_the_dtype_remain_and_nothing_finite_overflows(dtype):
    bits, infinity = np.arange(2**16, dtype=np.uint16), np.array(np.inf, dtype).view(np.uint16)
    every = bits[(bits & infinity) != infinity].view(dtype)
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    if dtype != np.float16:  # float32 arithmetic flushes its own subnormal numbers on this device
        every = every[(np.abs(every.astype(np.float32)) >= smallest) | (every == 0)]
    found = np.asarray(rounded(every.astype(np.float32), dtype, draw(every.shape)))
    np.testing.assert_array_equal(found.astype(np.float32), every.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(every))
    most = float(ml_dtypes.finfo(dtype).max)
    ends = np.float32([most * (1 + 2**-12), -most * (1 + 2**-12), np.inf, -np.inf, np.nan])
    for seed in range(5):
        np.testing.assert_array_equal(wide(rounded(ends, dtype, draw(5, seed))), [most, -most, np.inf, -np.inf, np.nan])


def test_a_second_moment_decays_and_does_not_stay():
    def decayed(round_):
        def step(carry, bits):
            return round_(jnp.float32(0.999) * carry.astype(jnp.float32), bits), None

        start = np.full(2000, 0.5, jnp.bfloat16)
        return wide(jax.jit(lambda v, bits: lax.scan(step, v, bits)[0])(start, draw((3000, 2000))))

    np.testing.assert_array_equal(decayed(lambda v, bits: v.astype(jnp.bfloat16)), 0.5)
    found = decayed(lambda v, bits: stochastically_rounded(v, jnp.bfloat16, bits))
    exact = 0.5 * 0.999**3000
    assert 0.024 < exact < 0.026
    assert abs(found.mean() - exact) < 3 * found.std() / np.sqrt(found.size)


@functools.cache
def loop(optimizer):
    """The program of some steps with gradients of ones."""

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(lambda steps, carry: lax.fori_loop(0, steps, step, carry))


def run(optimizer, params, steps, state=None):
    state = optimizer.init(params) if state is None else state
    return loop(optimizer)(steps, (params, state))


def test_two_hundred_small_updates_arrive_on_average():
    params = jnp.ones(10**5, jnp.bfloat16)
    assert np.all(wide(run(optax.sgd(1e-4), params, 200)[0]) == 1.0)
    found = wide(run(stochastic_rounding(optax.sgd(1e-4)), params, 200)[0])
    assert abs(found.mean() - 0.98) < 3 * found.std() / np.sqrt(found.size)
    assert found.std() > 0.001


def test_the_mean_over_a_million_updates_is_the_exact_sum():
    random = np.random.default_rng(3)
    params = random.normal(size=10**6).astype(ml_dtypes.bfloat16)
    steps = (random.normal(size=10**6) * 10.0 ** random.uniform(-5, 0, 10**6)).astype(np.float32)
    optimizer = stochastic_rounding(optax.sgd(1.0))

    @jax.jit
    def moved(gradients, params):
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    new = np.asarray(moved(-steps, params)).astype(np.float64)
    exact = (params.astype(np.float32) + steps).astype(np.float64)
    error = new - exact
    spacing = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-30))) - 7)
    scaled = error / spacing
    assert np.all(np.abs(scaled) < 1 + 1e-3)
    assert abs(scaled.mean()) < 3 * scaled.std() / 1000
    assert abs((scaled * np.sign(exact)).mean()) < 3 * scaled.std() / 1000
    assert 0.2 < scaled.std() < 0.5


def tree():
    ones = np.ones((8, 16), ml_dtypes.bfloat16)
    return {"a": ones, "b": ones.copy(), "c": np.ones(3, np.float32)}


def test_steps_leaves_and_seeds_draw_other_bits_and_a_restored_run_the_same(tmp_path):
    optimizer = stochastic_rounding(optax.adam(1e-3), seed=2**32 - 1)
    once, state = run(optimizer, tree(), 3)
    assert not np.array_equal(once["a"], once["b"])
    whole, _ = run(optimizer, tree(), 5)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    again, last = run(optimizer, once, 2, restored)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert int(last.steps) == 5
    assert not np.array_equal(run(stochastic_rounding(optax.adam(1e-3)), tree(), 3)[0]["a"], once["a"])
    plain, _ = run(optax.adam(1e-3), {"c": np.ones(3, np.float32)}, 3)
    np.testing.assert_array_equal(once["c"], plain["c"])  # float32 leaves are added as they are
    one = compiled(stochastic_rounding(optax.sgd(1e-3)))
    state = one.init(tree())
    first, state = one.update(tree(), state, tree())
    assert not np.array_equal(first["a"], one.update(tree(), state, tree())[0]["a"])


def test_sharded_parameters_draw_the_bits_of_whole_ones():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    optimizer = stochastic_rounding(optax.sgd(1e-3))
    expected, _ = run(optimizer, tree(), 4)
    for spec in (PartitionSpec("x"), PartitionSpec(None, "x")):
        sharding = NamedSharding(mesh, spec)
        params = tree() | {key: jax.device_put(tree()[key], sharding) for key in ("a", "b")}
        found, _ = run(optimizer, params, 4)
        assert found["a"].sharding.is_equivalent_to(sharding, 2)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_in_shard_map_replicas_agree_and_shards_differ():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    optimizer = stochastic_rounding(optax.sgd(3e-3))

    def step(params):
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    specs = {"sharded": PartitionSpec("x"), "replicated": PartitionSpec()}
    params = {name: np.ones((rows, 64), ml_dtypes.bfloat16) for name, rows in (("sharded", 8), ("replicated", 1))}
    found = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(specs,), out_specs=specs))(params)
    copies = [np.asarray(shard.data) for shard in found["replicated"].addressable_shards]
    assert len(copies) == 8
    assert all(np.array_equal(copy, copies[0]) for copy in copies)
    assert len({row.tobytes() for row in np.asarray(found["sharded"])}) == 8


def test_it_works_under_vmap_and_donation():
    optimizer = compiled(stochastic_rounding(optax.adam(1e-2)))
    twice = jax.tree.map(lambda leaf: leaf + leaf, tree())
    stack = jax.tree.map(lambda *leaves: np.stack(leaves), tree(), twice)
    states = jax.vmap(optimizer.init)(stack)
    updates, _ = jax.vmap(optimizer.update)(stack, states, stack)
    single, _ = optimizer.update(twice, optimizer.init(tree()), twice)
    np.testing.assert_array_equal(updates["a"][1], single["a"])
    state = optimizer.init(tree())
    step = jax.jit(optimizer.update, donate_argnums=1)
    for _ in range(2):
        _, state = step(tree(), state, tree())
    assert int(state.steps) == 2


@SUMS_IN_ONE_DTYPE
def test_it_works_inside_and_around_multi_steps():
    inside = stochastic_rounding(optax.MultiSteps(optax.sgd(1e-2), 2).gradient_transformation())
    around = optax.MultiSteps(stochastic_rounding(optax.sgd(1e-2)), 2).gradient_transformation()
    for each in (inside, around):
        new, last = run(each, tree(), 100)
        assert jax.tree.map(jnp.result_type, last) == jax.tree.map(jnp.result_type, each.init(tree()))
        assert abs(wide(new["a"]).mean() - 0.5) < 0.01


def test_leaves_that_are_no_16_bit_floats_pass():
    ones = np.ones(4, jnp.bfloat16)
    params = {"w": ones, "i": np.arange(3, dtype=np.int32), "none": None, "masked": optax.MaskedNode()}
    gradients = {"w": ones, "i": np.zeros(3, jax.dtypes.float0), "none": None}
    gradients["masked"] = optax.MaskedNode()
    optimizer = compiled(stochastic_rounding(optax.stateless(lambda g, p: {**g, "w": -0.5 * g["w"]})))
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert updates["w"].dtype == jnp.float32
    assert updates["i"].dtype == jax.dtypes.float0
    assert updates["none"] is None
    np.testing.assert_array_equal(updates["w"], -0.5)


def test_what_is_wrong_is_said():
    optimizer, params = stochastic_rounding(optax.sgd(0.1)), jnp.ones(2, jnp.bfloat16)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(params, state)
    with pytest.raises(ValueError, match="needs a state of type StochasticRoundingState; got tuple"):
        optimizer.update(params, (), params)
    with pytest.raises(ValueError, match="was made by other, and not by stochastic_rounding"):
        optimizer.update(params, StochasticRoundingState(*state[:3], made_by("other")), params)
    for seed, error in ((-1, ValueError), (2**32, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="seed must be an integer"):
            stochastic_rounding(optax.sgd(0.1), seed=seed)
    with pytest.raises(TypeError, match="dtype must be bfloat16 or float16; got float32"):
        stochastically_rounded(jnp.ones(2), jnp.float32, draw(2))
    with pytest.raises(TypeError, match="x must be float32 and bits uint32; got bfloat16"):
        stochastically_rounded(params, jnp.bfloat16, draw(2))
    with pytest.raises(ValueError, match=r"bits must have the shape of x, \(2,\); got \(3,\)"):
        stochastically_rounded(jnp.ones(2), jnp.bfloat16, draw(3))
