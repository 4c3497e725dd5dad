"""Moments in bfloat16 with stochastic rounding: the right means, the same bits in every run and on every mesh."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

import novoclip
from novoclip.optimizers import bfloat16
from novoclip.optimizers.bfloat16 import Rounded, RoundedRoot, root_rounded
from novoclip.precision import stochastic
from novoclip.precision.random_bits import random_bits
from tests.steps import compiled

RANDOM = "bfloat16_stochastic"
ONES = np.ones((8, 16), np.float32)
PARAMS = {"kernel": ONES, "scale": np.ones((), np.float32), "other": 0 * ONES}
OPTIMIZERS = {
    "adam": functools.partial(novoclip.adam, mu_dtype=RANDOM, nu_dtype=RANDOM),
    "adamw": functools.partial(novoclip.adamw, mu_dtype=RANDOM, nu_dtype=RANDOM),
    "novograd": functools.partial(novoclip.novograd, mu_dtype=RANDOM),
    "momentum": functools.partial(novoclip.momentum, accumulator_dtype=RANDOM),
    "sgd": functools.partial(novoclip.sgd, momentum=0.9, accumulator_dtype=RANDOM),
}
rounded = jax.jit(root_rounded)


def wide(array):
    return np.asarray(array, np.float64)


def draw(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)


def gradients(seed, size=1.0):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(size * generator.normal(size=leaf.shape), np.float32), PARAMS)


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def spacing(x):
    """The distance of two bfloat16 numbers at x."""
    return 2.0 ** (np.floor(np.log2(np.abs(x))) - 7)


def test_a_second_moment_decays_on_average_where_rounding_to_nearest_keeps_it():
    gradient = np.sqrt(0.5 / 0.001)  # after one step v is 0.5

    def decayed(dtype, size):
        optimizer = novoclip.scale_by_adam(nu_dtype=dtype)

        def run():
            _, state = optimizer.update(jnp.full(size, gradient), optimizer.init(jnp.zeros(size)))
            state, _ = lax.scan(lambda s, _: (optimizer.update(jnp.zeros(size), s)[1], None), state, length=3000)
            return jax.tree.leaves(state.moments.root)[0]

        return wide(jax.jit(run)()) ** 2

    np.testing.assert_allclose(decayed("bfloat16", 8), 0.5, rtol=2**-8)
    found, exact = decayed(RANDOM, 40_000), 0.5 * 0.999**3000
    assert 0.0245 < exact < 0.0255
    assert abs(found.mean() - exact) < 3 * found.std() / np.sqrt(found.size)


def test_both_moments_have_the_mean_of_float64_over_a_million_elements():
    generator = np.random.default_rng(1)
    given = (generator.normal(size=10**6) * 10.0 ** generator.uniform(-5, 5, 10**6)).astype(np.float32)
    optimizer = compiled(novoclip.scale_by_adam(mu_dtype=RANDOM, nu_dtype=RANDOM))
    _, state = optimizer.update(given, optimizer.init(given))
    m, root = 0.1 * wide(given), np.sqrt(0.001) * np.abs(wide(given))
    found, found_root = wide(state.moments.mu.elements), wide(state.moments.root.elements)
    for error, unit in (((found - m) * np.sign(m), spacing(m)), (found_root**2 - root**2, 2 * root * spacing(root))):
        scaled = error / unit
        assert abs(scaled.mean()) < 3 * scaled.std() / 1000
        assert 0.2 < scaled.std() < 0.5
    assert np.max(np.abs(found - m) / spacing(m)) < 1.001
    assert np.max(np.abs(found_root - root) / spacing(root)) < 1.001


@pytest.mark.parametrize("x", [1.001, 0.3333, 2.9e-30, 1.9961, 0.9999])
def test_a_root_takes_the_neighbour_above_with_the_probability_of_its_square(x):
    x = float(np.float32(x))
    found = wide(rounded(np.full(10**5, x, np.float32), draw(10**5)))
    low = float((np.array(x, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32))
    high = low + spacing(low)
    assert set(np.unique(found)) <= {low, high}
    chance = (x**2 - low**2) / (high**2 - low**2)
    assert abs(np.mean(found == high) - chance) < 3 * np.sqrt(chance * (1 - chance) / 10**5)


@pytest.mark.parametrize("x", [1.001, 1.0039, 0.3333, 2.9e-30, 1.9961])
def test_the_mean_of_the_square_over_all_bits_is_the_square(x):
    x = float(np.float32(x))
    every = np.arange(2**16, dtype=np.uint32) << 16
    found = wide(rounded(np.full(2**16, x, np.float32), every))
    # In units of the distance of two squares. Rounding whose mean is the root is off by up to 1e-3.
    assert abs(np.mean(found**2) - x**2) / (2 * x * spacing(x)) < 3e-5


def test_roots_of_the_dtype_remain_and_nothing_finite_overflows():
    every = np.arange(2**15, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    every = every[(every >= 2.0**-126) | (every == 0)]  # float32 arithmetic flushes subnormal numbers on this device
    np.testing.assert_array_equal(np.asarray(rounded(every, draw(every.shape)), np.float32), every)
    most = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    np.testing.assert_array_equal(wide(rounded(np.full(9, 3.4e38, np.float32), draw(9))), most)
    assert np.isnan(wide(rounded(np.float32([np.nan]), draw(1))))[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_take_two_bytes_and_types_never_change(name):
    optimizer = OPTIMIZERS[name](1e-2)
    state = jax.eval_shape(optimizer.init, PARAMS)
    _, after = jax.eval_shape(optimizer.update, PARAMS, state, PARAMS)
    kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state, after)]
    assert kinds[0] == kinds[1]
    held = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Rounded | RoundedRoot))
    found = [type(node) for node in held if isinstance(node, Rounded | RoundedRoot)]
    assert found == [Rounded] * 3 + [RoundedRoot] * 3 * name.startswith("adam")
    per_parameter = novoclip.state_bytes(optimizer, {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32)})
    assert per_parameter["per_parameter"] == pytest.approx(4 if name.startswith("adam") else 2, abs=1e-3)


def test_a_skipped_step_keeps_every_bit_and_a_restored_run_draws_the_same(tmp_path):
    optimizer = compiled(OPTIMIZERS["adam"](1e-2))
    state, update = optimizer.init(PARAMS), optimizer.update
    for seed in range(2):
        _, state = update(gradients(seed), state, PARAMS)
    bad = gradients(3) | {"scale": np.float32(np.nan)}
    equal(update(bad, state, PARAMS)[1].moments, state.moments)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    equal(restored, state)
    equal(update(gradients(4), restored, PARAMS), update(gradients(4), state, PARAMS))


def test_moments_and_weights_never_draw_the_same_bits(monkeypatch):
    drawn = []

    def recorded(key, like, *axes):
        drawn.append(random_bits(key, like, *axes))
        return drawn[-1]

    monkeypatch.setattr(stochastic, "random_bits", recorded)
    monkeypatch.setattr(bfloat16, "random_bits", recorded)
    optimizer = novoclip.stochastic_rounding(novoclip.sgd(0.1, momentum=0.9, accumulator_dtype=RANDOM))
    weights = {name: np.ones(4, ml_dtypes.bfloat16) for name in ("a", "b")}

    @jax.jit
    def bits_of_three_steps():
        state = optimizer.init(weights)
        for _ in range(3):
            _, state = optimizer.update(weights, state, weights)
        return drawn

    found = bits_of_three_steps()
    assert len({tuple(np.asarray(bits).tolist()) for bits in found}) == len(found) == 12


def test_steps_and_leaves_draw_other_bits():
    optimizer = compiled(novoclip.trace(0.9, accumulator_dtype=RANDOM))
    ones = np.full((8, 16), 1.001, np.float32)
    state = optimizer.init({"a": ones, "b": ones})
    _, first = optimizer.update({"a": ones, "b": ones}, state)
    _, second = optimizer.update({"a": ones, "b": ones}, state._replace(steps=np.asarray(state.steps) + 1))
    found = [wide(each.elements) for moments in (first.moments, second.moments) for each in moments.trace.values()]
    assert len({each.tobytes() for each in found}) == 4


def test_sharded_arrays_draw_the_bits_of_whole_ones():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    optimizer = OPTIMIZERS["adam"](1e-2)
    kernel = gradients(0)["kernel"]
    expected = jax.jit(optimizer.update)(kernel, optimizer.init(kernel), kernel)
    placed = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(None, "x")))
    found = jax.jit(optimizer.update)(placed, optimizer.init(placed), placed)
    assert found[1].moments.mu.elements.sharding.is_equivalent_to(placed.sharding, 2)
    equal(found, expected)


def test_in_shard_map_replicas_agree_and_shards_differ():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    optimizer = novoclip.trace(0.9, accumulator_dtype=RANDOM)

    def trace(given):
        return optimizer.update(given, optimizer.init(given))[1].moments.trace

    given = {"sharded": np.full((8, 64), 1.001, np.float32), "replicated": np.full((1, 64), 1.001, np.float32)}
    specs = {"sharded": PartitionSpec("x"), "replicated": PartitionSpec()}
    found = jax.jit(jax.shard_map(trace, mesh=mesh, in_specs=(specs,), out_specs=specs))(given)
    copies = [np.asarray(shard.data) for shard in found["replicated"].elements.addressable_shards]
    assert all(np.array_equal(copy, copies[0]) for copy in copies)
    assert len({row.tobytes() for row in np.asarray(found["sharded"].elements)}) == 8


def test_complex_moments_and_integers_stay_as_they_are():
    params = {"z": np.ones(3, np.complex64), "i": np.arange(3, dtype=np.int32)}
    given = {"i": np.zeros(3, jax.dtypes.float0), "z": np.full(3, 3 + 4j, np.complex64)}
    optimizer = compiled(novoclip.scale_by_adam(mu_dtype=RANDOM, nu_dtype=RANDOM))
    updates, state = optimizer.update(given, optimizer.init(params))
    assert state.moments.mu["z"].dtype == jnp.complex64
    assert state.moments.mu["i"] is None
    np.testing.assert_allclose(state.moments.mu["z"], 0.3 + 0.4j, rtol=1e-5)
    np.testing.assert_allclose(wide(state.moments.root["z"].elements), 5 * np.sqrt(0.001), rtol=2**-7)
    np.testing.assert_allclose(updates["z"], 0.6 + 0.8j, rtol=1e-3)  # the step itself is computed in float32


@pytest.mark.parametrize("kind", [RANDOM, "int8"])
def test_it_holds_under_strict_promotion(kind):
    optimizer, ones = compiled(novoclip.scale_by_adam(mu_dtype=kind, nu_dtype=kind)), np.ones(3, np.float32)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        updates, state = optimizer.update(ones, optimizer.init(ones))
        optimizer.update(ones, state)
    np.testing.assert_allclose(updates, 1.0, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_float64_is_rounded_once_more_and_stays_in_range():
    optimizer = compiled(novoclip.trace(0.9, accumulator_dtype=RANDOM))
    given = np.array([1e300, -1e300, 1.0, 1e-300])
    updates, state = optimizer.update(given, optimizer.init(given))
    most = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    np.testing.assert_array_equal(wide(state.moments.trace.elements), [most, -most, 1.0, 0.0])
    np.testing.assert_array_equal(updates, given)


def test_nearest_rounding_stays_that_of_bfloat16_alone():
    state = jax.eval_shape(novoclip.adam(1e-3, mu_dtype="bfloat16", nu_dtype=jnp.bfloat16).init, PARAMS)
    assert state.moments.mu["kernel"].dtype == state.moments.root["kernel"].dtype == jnp.bfloat16


def test_what_can_be_written_is_said():
    for wrong in ("bfloat17", "bfloat16-stochastic", "int16", 3):
        with pytest.raises(TypeError, match=r"mu_dtype must be .*; got .*\"bfloat16_stochastic\" .* or \"int8\""):
            novoclip.novograd(0.1, mu_dtype=wrong)
    with pytest.raises(TypeError, match="with stochastic rounding are those of adam, adamw, novograd, momentum and"):
        novoclip.adagrad(0.1, nu_dtype=RANDOM)
