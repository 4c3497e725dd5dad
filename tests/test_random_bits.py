"""The bits that round at random: uniform, independent of each other and of those of other steps, wherever they are."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from scipy import stats

from novoclip.precision.random_bits import random_bits, random_fractions

SHAPE = (512, 512)


def bits_of(seed, shape=SHAPE):
    return np.asarray(jax.jit(lambda: random_bits(jax.random.key(seed), jnp.zeros(shape)))())


def mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def test_bits_are_their_formula():
    a, b = map(int, jax.random.bits(jax.random.key(6), (2,), jnp.uint32))
    expected = [mix((mix(i ^ a) + b) % 2**32) for i in range(24)]
    assert bits_of(6, (2, 3, 4)).ravel().tolist() == expected


def test_two_elements_are_independent_over_the_keys_of_many_steps():
    steps = jnp.arange(2**16)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(steps)
    found = np.asarray(
        jax.jit(jax.vmap(lambda key: random_bits(key, jnp.zeros(300))[jnp.array([0, 1, 256, 299])]))(keys)
    )
    for one, other in itertools.combinations(range(4), 2):
        assert abs(correlation(found[:, one], found[:, other])) < 4.5
        assert abs(correlation(found[:, one] >> 31, found[:, other] >> 31)) < 4.5
    assert abs(correlation(found[1:, 0], found[:-1, 0])) < 4.5


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_each_byte_is_uniform(seed, shift):
    counts = np.bincount((bits_of(seed).ravel() >> shift) & 255, minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4


def correlation(one, other):
    one, other = (x.astype(np.float64).ravel() for x in (one, other))
    return np.corrcoef(one, other)[0, 1] * one.size**0.5  # about a standard normal number where there is none


@pytest.mark.parametrize("seed", [0, 7])
def test_neighbors_steps_and_arrays_are_independent(seed):
    here = bits_of(seed)
    pairs = [(here, bits_of(seed + 1)), (here[:-1], here[1:]), (here[:, :-1], here[:, 1:]), (here[:256], here[256:])]
    key = jax.random.key(seed)
    folded = tuple(np.asarray(random_bits(jax.random.fold_in(key, i), jnp.zeros(SHAPE))) for i in (0, 1))
    for one, other in [*pairs, folded]:
        assert abs(correlation(one, other)) < 4.5
        assert abs(correlation(one >> 31, other >> 31)) < 4.5  # the bit that decides most
        ones = float(np.bitwise_count(one ^ other).sum())  # of 32 bits a number, half differ
        assert abs(ones - 16 * one.size) < 4.5 * (8 * one.size) ** 0.5


def test_no_number_of_another_step_comes_again_more_often_than_by_chance():
    one, other = bits_of(3).ravel(), bits_of(4).ravel()
    assert np.unique(one).size == one.size  # a bijection of the number of the element
    expected = one.size**2 / 2**32
    assert abs(np.intersect1d(one, other).size - expected) < 4.5 * expected**0.5 + 1


def test_a_reshaped_or_sharded_array_has_the_same_bits():
    whole = bits_of(5)
    np.testing.assert_array_equal(bits_of(5, (8, 64, 512)).reshape(SHAPE), whole)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("a", "b"))
    split = jax.device_put(jnp.zeros(SHAPE), NamedSharding(mesh, P("a", "b")))
    found = jax.jit(lambda x: random_bits(jax.random.key(5), x), out_shardings=split.sharding)(split)
    np.testing.assert_array_equal(found, whole)


def test_fractions_are_at_least_0_and_below_1():
    found = np.asarray(random_fractions(jax.random.key(0), jnp.zeros(SHAPE)))
    assert found.dtype == np.float32
    assert (found >= 0).all()
    assert (found < 1).all()
    assert stats.kstest(found.ravel(), "uniform").pvalue > 1e-4
