"""Moments in 8 bits: bytes, skipped steps, and trainings that end where those of float32 end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from novoclip.optimizers.companded import BLOCK, Companded
from novoclip.optimizers.kept import as_computed
from tests.steps import compiled

PARAMS = {"kernel": np.ones((8, 600), np.float32), "bias": np.zeros(3, np.float32), "scale": np.ones((), np.float32)}
OPTIMIZERS = {
    "adam": functools.partial(novoclip.adam, mu_dtype="int8", nu_dtype="int8"),
    "adamw": functools.partial(novoclip.adamw, mu_dtype="int8", nu_dtype="int8"),
    "novograd": functools.partial(novoclip.novograd, mu_dtype="int8"),
    "momentum": functools.partial(novoclip.momentum, accumulator_dtype="int8"),
    "sgd": functools.partial(novoclip.sgd, momentum=0.9, accumulator_dtype="int8"),
}


def gradients(seed, size=1.0):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(size * generator.normal(size=leaf.shape), np.float32), PARAMS)


def bytes_of(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_a_moment_takes_a_byte_an_element_and_a_scale_per_block():
    moments = OPTIMIZERS["adam"](1e-2).init(PARAMS).moments
    rows = 8 * -(-600 // BLOCK) + 1  # of the kernel, and one of the bias
    codes = 8 * 600 + 3
    assert bytes_of(moments.mu) == bytes_of(moments.root) == codes + 4 * rows + 4  # a scalar stays float32
    assert (moments.mu["kernel"].codes.dtype, moments.root["kernel"].codes.dtype) == (jnp.int8, jnp.uint8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_keeps_every_bit_and_types_never_change(name):
    optimizer = OPTIMIZERS[name](1e-2)
    guard, optimizer = compiled(novoclip.skip_spikes(optimizer, 1e3)), compiled(optimizer)
    state = optimizer.init(PARAMS)
    types = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    for seed in range(3):
        _, state = optimizer.update(gradients(seed), state, PARAMS)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == types
    _, after = optimizer.update(gradients(3) | {"bias": np.full(3, np.nan, np.float32)}, state, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, after.moments, state.moments)
    _, state = guard.update(gradients(0), guard.init(PARAMS), PARAMS)
    _, after = guard.update(gradients(1, 1e6), state, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, after.inner.moments, state.inner.moments)


def test_moments_are_those_of_float32_up_to_their_rounding():
    """After a step m and sqrt(v) are the gradient times 0.1 and 0.0316; an error is below a 63rd of the largest."""
    optimizer = OPTIMIZERS["adam"](1e-2)
    given = gradients(0)

    @jax.jit
    def moments(given):
        return as_computed(optimizer.update(given, optimizer.init(PARAMS), PARAMS)[1].moments, jnp.float32)

    found = moments(given)
    for moment, share in ((found.mu, 0.1), (jax.tree.map(np.abs, found.root), 0.001**0.5)):
        sizes = jax.tree.map(lambda leaf, share=share: share * np.asarray(leaf, np.float64), given)
        sizes = sizes if share == 0.1 else jax.tree.map(np.abs, sizes)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=np.abs(b).max() / 63), moment, sizes)


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_a_regression_ends_where_that_of_float32_ends(name):
    generator = np.random.default_rng(0)
    x = np.asarray(generator.normal(size=(256, 32)), np.float32)
    y = np.float32(x @ generator.normal(size=(32, 4)) + 0.1 * generator.normal(size=(256, 4)))
    usual = {"adam": novoclip.adam, "momentum": novoclip.momentum}[name]

    def loss_of(weights):
        return jnp.mean((x @ weights - y) ** 2)

    def trained(optimizer):
        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss_of)(weights), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        start = np.zeros((32, 4), np.float32)
        (weights, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), length=1500))()
        return float(np.mean((x @ np.asarray(weights) - y) ** 2))

    rate = optax.cosine_decay_schedule({"adam": 0.03, "momentum": 0.05}[name], 1500)
    assert trained(OPTIMIZERS[name](rate)) == pytest.approx(trained(usual(rate)), rel=0.02)


def test_second_moments_decay_on_average():
    """With rounding to the nearest code they would stay: a step of 0.9995 is far below the distance of two codes."""
    optimizer = novoclip.scale_by_adam(nu_dtype="int8")
    first, later = np.ones((8, 256), np.float32), np.zeros((8, 256), np.float32)
    # The first element of each block keeps its size, so that the scale stays.
    later[:, 0] = 1.0

    def step(state, number):
        return optimizer.update(jnp.where(number == 0, first, later), state)[1], None

    @jax.jit
    def roots_of():
        state, _ = jax.lax.scan(step, optimizer.init(first), jnp.arange(2001))
        return as_computed(state.moments, jnp.float32).root

    roots = np.asarray(roots_of())[:, 1:]
    expected = (0.001 * 0.999**2000) ** 0.5
    # Six standard errors; sqrt(v) is multiplied by a constant, and random rounding has no bias.
    assert np.mean(roots) == pytest.approx(expected, rel=0.05)


def test_other_optimizers_refuse_eight_bits_and_say_which_take_them():
    for make in (novoclip.adagrad, novoclip.rmsprop, novoclip.adopt):
        name = "mu_dtype" if make is novoclip.adopt else "nu_dtype"
        with pytest.raises(TypeError, match="moments in 8 bits are those of adam, adamw"):
            make(0.1, **{name: "int8"})
    with pytest.raises(TypeError, match="mu_dtype must be a floating dtype"):
        novoclip.adam(0.1, mu_dtype="int16")


def test_arrays_split_over_devices_keep_their_sharding():
    mesh = jax.make_mesh((8,), ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", None))
    kernel = jax.device_put(PARAMS["kernel"], place)
    optimizer = OPTIMIZERS["adam"](1e-2)
    update = jax.jit(optimizer.update)
    state = update(kernel, optimizer.init(kernel), kernel)[1]
    assert isinstance(state.moments.mu, Companded)
    assert state.moments.mu.codes.sharding.is_equivalent_to(place, 2)
    whole = optimizer.init(PARAMS["kernel"])
    expected = update(PARAMS["kernel"], whole, PARAMS["kernel"])[1]
    np.testing.assert_array_equal(state.moments.mu.codes, expected.moments.mu.codes)
