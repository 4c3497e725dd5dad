"""The recipe of seven bytes per parameter: bfloat16 weights and gradients, an int8 remainder, two moments in 8 bits."""

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import novoclip
from novoclip.optimizers.companded import BLOCK
from tests.programs import SUMS_IN_ONE_DTYPE


def recipe(rate=3e-4):
    return novoclip.master_weights(novoclip.adamw(rate, mu_dtype="int8", nu_dtype="int8"), remainder="int8")


def params_of():
    generator = np.random.default_rng(0)
    leaves = {"w": generator.normal(size=(8, 512)), "b": np.ones(8)}
    return {name: jnp.asarray(leaf.astype(jnp.bfloat16)) for name, leaf in leaves.items()}


def gradients_at(number, params):
    return jax.tree.map(lambda p: jnp.sin(7 * p.astype(jnp.float32) + number).astype(p.dtype), params)


def step_of(optimizer):
    """One step as a program with donated parameters and state."""

    def step(params, state, number):
        updates, state = optimizer.update(gradients_at(number, params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_parameter_takes_seven_bytes_and_the_scales():
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)}
    state = novoclip.state_bytes(recipe(), params)["per_parameter"]
    weights = gradients = 2
    assert state == pytest.approx(1 + 2 * (1 + 4 / BLOCK), abs=1e-4)
    assert weights + state + gradients < 7.04
    float32 = novoclip.state_bytes(novoclip.adamw(1e-3), {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)})
    assert 4 + float32["per_parameter"] + 4 == pytest.approx(16, abs=1e-4)


def test_donated_and_restored_runs_have_the_same_bits_and_sharded_ones_draw_them(tmp_path):
    optimizer = recipe(0.01)
    step, checkpointer = step_of(optimizer), ocp.StandardCheckpointer()
    shapes = jax.eval_shape(lambda: (params_of(), optimizer.init(params_of())))
    # As arrays that are restored, these are committed to their device: the program is the same.
    params, state = jax.device_put((params_of(), jax.jit(optimizer.init)(params_of())), jax.devices()[0])
    for number in range(4):
        if number == 2:
            checkpointer.save(tmp_path / "run", (params, state))
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "run", shapes)
            equal(restored, (params, state))
        params, state = step(params, state, number)
    for number in (2, 3):
        restored = step(*restored, number)
    equal(restored, (params, state))
    place = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
    spread = jax.tree.map(lambda leaf: jax.device_put(leaf, place), params_of())
    four = jax.jit(lambda carry: lax.fori_loop(0, 4, lambda number, carry: step(*carry, number), carry))
    spread, spread_state = four((spread, optimizer.init(spread)))
    for leaf in (spread_state.weights["w"], *spread_state.inner.moments.root["w"]):
        assert leaf.sharding.is_equivalent_to(place, 2)
    # Another program may round a scale otherwise, by one unit in the last place, and never draws other bits.
    for one, other in zip(*map(jax.tree.leaves, ((spread, spread_state), (params, state))), strict=True):
        if one.dtype in (jnp.int8, jnp.uint8):
            assert np.mean(np.asarray(one) != np.asarray(other)) < 0.01
        else:
            np.testing.assert_allclose(*(np.asarray(x, np.float64) for x in (one, other)), rtol=1e-6)


@SUMS_IN_ONE_DTYPE
def test_in_multi_steps_two_equal_microbatches_are_one_step():
    one, two = recipe(0.01), optax.MultiSteps(recipe(0.01), 2)

    def trained(optimizer, every):
        def step(carry, i):
            params, state = carry
            given = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5) * (1 + i // every), params)
            updates, state = optimizer.update(given, state, params)
            return (optax.apply_updates(params, updates), state), None

        given = params_of()
        return jax.jit(lambda start: lax.scan(step, (start, optimizer.init(start)), jnp.arange(5 * every))[0])(given)

    (params, state), (of_micro, micro_state) = trained(one, 1), trained(two, 2)
    equal(of_micro, params)
    equal(micro_state.inner_opt_state, state)
    assert not np.array_equal(params["w"], params_of()["w"])


def test_a_regression_ends_where_that_of_float32_ends_and_bfloat16_weights_alone_do_not():
    generator = np.random.default_rng(0)
    x = np.float32(generator.normal(size=(256, 32)))
    noise = 0.1 * generator.normal(size=(256, 4))
    y = np.float32(x @ generator.normal(size=(32, 4)) + noise)

    @jax.jit
    def loss_of(weights):
        return jnp.mean((x @ weights.astype(jnp.float32) - y) ** 2)

    def trained(optimizer, dtype):
        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss_of)(weights), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        start = np.zeros((32, 4), dtype)
        return jax.jit(lambda: lax.scan(step, (start, optimizer.init(start)), length=1500)[0])()

    rate = optax.cosine_decay_schedule(0.03, 1500)
    float32, _ = trained(novoclip.adamw(rate), jnp.float32)
    params, state = trained(recipe(rate), jnp.bfloat16)
    alone, _ = trained(novoclip.adamw(rate), jnp.bfloat16)
    reached = float(loss_of(float32))
    assert float(loss_of(novoclip.weights_of(state, params))) == pytest.approx(reached, rel=0.02)
    assert float(loss_of(alone)) > 1.05 * reached


def test_second_moments_at_equal_distances_diverge_where_companded_ones_descend():
    """In a row of 256 gradients from 0.01 to 1, v spans 10^4, and codes at equal distances make the small ones 0."""
    curvature, start = np.logspace(-2, 0, 256, dtype=np.float32), np.ones(256, np.float32)

    @jax.jit
    def loss_of(weights):
        return 0.5 * jnp.sum(curvature * weights**2)

    def linear(v):
        scale = jnp.max(v)
        return jnp.round(v / scale * 255) / 255 * scale

    def of_linear():
        def step(carry, t):
            weights, m, v = carry
            gradient = jax.grad(loss_of)(weights)
            m, v = 0.9 * m + 0.1 * gradient, linear(0.999 * v + 0.001 * gradient**2)
            corrected = m / (1 - 0.9**t), v / (1 - 0.999**t)
            return (weights - 0.01 * corrected[0] / (jnp.sqrt(corrected[1]) + 1e-8), m, v), None

        return lax.scan(step, (start, 0 * start, 0 * start), jnp.arange(1.0, 201.0))[0][0]

    def of(optimizer):
        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss_of)(weights), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        return lax.scan(step, (start, optimizer.init(start)), length=200)[0][0]

    first = float(loss_of(start))
    float32, eight = (
        float(loss_of(jax.jit(of, static_argnums=0)(novoclip.adam(0.01, **dtypes))))
        for dtypes in ({}, {"mu_dtype": "int8", "nu_dtype": "int8"})
    )
    assert float32 < 0.01 * first
    assert eight < 0.01 * first
    assert not float(loss_of(jax.jit(of_linear)())) < 1e6 * first
