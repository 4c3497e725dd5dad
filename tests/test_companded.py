"""Moments in 8 bits: bounds on their errors, what is exact, and what codes at equal distances lose."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from novoclip.optimizers.companded import (
    BLOCK,
    Companded,
    companded_zeros,
    decode,
    encode,
)
from novoclip.optimizers.kept import as_computed, as_kept

SHAPES = [(), (1,), (5,), (256,), (257,), (3, 700), (2, 3, 512), (4, 1), (0,), (3, 0), (0, 300)]
jitted = jax.jit(encode)
to_and_fro = jax.jit(lambda x: decode(encode(x), x.dtype))
to_and_fro_unsigned = jax.jit(lambda x: decode(encode(x, signed=False), x.dtype))


def blocks_of(array):
    """Each block of an array, as the index of its elements."""
    rows = array.shape[:-1] if array.ndim else ()
    last = array.shape[-1] if array.ndim else 1
    for row in np.ndindex(rows):
        for start in range(0, last, BLOCK):
            yield (*row, slice(start, start + BLOCK)) if array.ndim else ()


def numbers(shape, seed=0, spread=3.0):
    """Numbers of both signs over several powers of ten, some of them 0, with another scale in each row."""
    generator = np.random.default_rng(seed)
    array = generator.normal(size=shape) * 10.0 ** generator.uniform(-spread, 0, size=shape)
    array = np.where(generator.uniform(size=shape) < 0.1, 0.0, array)
    scale = 10.0 ** generator.uniform(-10, 10, size=(*shape[:1], *(1,) * (len(shape) - 1)))
    return np.asarray(array * scale, np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_kept_and_rows_are_cut_into_blocks(shape):
    found = jax.eval_shape(encode, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert found.codes.shape == shape
    assert found.codes.dtype == jnp.int8
    assert found.scales.shape == (*shape[:-1], -(-shape[-1] // 256) if shape else 1)
    assert found.scales.dtype == jnp.float32
    assert jax.eval_shape(decode, found).shape == shape


@pytest.mark.parametrize("shape", [(), (5,), (257,), (3, 700)])
def test_errors_are_within_the_bound_and_zeros_and_maxima_exact(shape):
    array = numbers(shape)
    for signed, most in ((True, 127), (False, 255)):
        given = array if signed else np.abs(array)
        found = np.asarray((to_and_fro if signed else to_and_fro_unsigned)(given))
        if not signed:
            np.testing.assert_array_equal(found == 0, given == 0)
        assert np.all(found[given == 0] == 0)
        assert np.all(found * given >= 0)
        for index in blocks_of(array):
            block, stored = given[index].astype(np.float64), found[index].astype(np.float64)
            largest = np.max(np.abs(block))
            if largest == 0:
                continue
            # Half a code, times the slope of the inverse map, at whichever end is further out.
            x = np.maximum(np.abs(block), np.abs(stored)) / largest
            bound = (1 + x) ** 2 / 2 * (0.5 / most) * largest
            # Without a sign, what rounds to 0 becomes 1 instead.
            bound = np.where((np.abs(stored) > 0) & (x <= 1 / (2 * most - 1) * 1.001) & (not signed), 2 * bound, bound)
            assert np.all(np.abs(block - stored) <= bound * 1.001)
            at = np.argmax(np.abs(block))
            np.testing.assert_allclose(np.ravel(stored)[at], np.ravel(block)[at], rtol=1e-6)


def test_codes_decode_to_themselves():
    again_signed, again_unsigned = (
        jax.jit(lambda x, s=signed: encode(decode(x), signed=s)) for signed in (True, False)
    )
    for again_of, kind, codes in (
        (again_signed, jnp.int8, np.arange(-127, 128)),
        (again_unsigned, jnp.uint8, np.arange(256)),
    ):
        again = again_of(Companded(jnp.asarray(codes, kind), jnp.ones(1, jnp.float32)))
        np.testing.assert_array_equal(again.codes, codes)


def test_linear_codes_lose_small_second_moments_that_companded_ones_keep():
    v = np.full(256, 1e-3, np.float32)
    v[0] = 1.0
    linear = np.round(127 * v) / 127
    assert np.all(linear[1:] == 0)
    kept = np.asarray(to_and_fro_unsigned(np.sqrt(v))) ** 2
    np.testing.assert_allclose(kept[1:], 1e-3, rtol=0.07)
    # So does a code at equal distances for the root, but with an error that is more than twice as large.
    smaller = np.linspace(1e-3, 0.03, 255, dtype=np.float32)
    root = np.concatenate([[1.0], smaller]).astype(np.float32)
    error = np.abs(np.asarray(to_and_fro_unsigned(root)) - root)[1:]
    of_linear = np.abs(np.round(255 * root) / 255 - root)[1:]
    assert np.mean(error) < 0.6 * np.mean(of_linear)


def test_a_root_above_0_never_becomes_0():
    root = np.array([1.0, 1e-4, 1e-20, 0.0], np.float32)
    found = np.asarray(to_and_fro_unsigned(root))
    np.testing.assert_allclose(found, [1.0, 1 / 509, 1 / 509, 0.0], rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-30, 1e30, 3.4e38])
def test_blocks_of_any_size_give_no_nan(size):
    array = np.float32(size) * np.array([1.0, -0.5, 0.0, 0.25], np.float32)
    for function, given in ((to_and_fro, array), (to_and_fro_unsigned, np.abs(array))):
        found = np.asarray(function(given))
        assert np.all(np.isfinite(found))
        # Subnormal numbers may become 0.
        np.testing.assert_allclose(found, given, rtol=0.02, atol=2e-38 if size <= 1e-38 else 0)


@pytest.mark.usefixtures("x64")
def test_numbers_beyond_float32_are_those_at_its_end():
    found = np.asarray(to_and_fro(jnp.array([1e300, -1.0, 1e-300])))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [np.finfo(np.float32).max, 0, 0])


def test_a_block_that_is_not_finite_is_nan_and_no_other():
    array = np.ones((2, 600), np.float32)
    array[0, 300], array[1, 599] = np.nan, np.inf
    found = np.asarray(to_and_fro(array))
    expected = np.zeros((2, 600), bool)
    expected[0, 256:512] = expected[1, 512:] = True
    np.testing.assert_array_equal(np.isnan(found), expected)
    np.testing.assert_array_equal(found[~expected], 1.0)


def test_a_spike_in_one_row_or_block_does_not_touch_the_others():
    array = numbers((4, 512), seed=1)
    spiked = array.copy()
    spiked[2, 300] = 1e10
    before, after = jitted(array), jitted(spiked)
    same = np.ones((4, 512), bool)
    same[2, 256:] = False
    np.testing.assert_array_equal(np.asarray(before.codes)[same], np.asarray(after.codes)[same])


def test_equal_decay_is_exact_in_the_scales():
    stored = jitted(numbers((512,)))
    again, decay = stored, jax.jit(lambda stored: encode(0.999 * decode(stored)))
    for _ in range(50):
        again = decay(again)
    np.testing.assert_array_equal(again.codes, stored.codes)
    np.testing.assert_allclose(again.scales, stored.scales * 0.999**50, rtol=1e-5)


def test_random_rounding_is_right_in_expectation_and_keeps_what_is_exact():
    array = numbers((300,), spread=1.5)
    for signed, given in ((True, array), (False, np.abs(array))):
        of_key = jax.jit(jax.vmap(lambda key, x=given, s=signed: decode(encode(jnp.asarray(x), signed=s, key=key))))
        found = np.asarray(of_key(jax.random.split(jax.random.key(0), 2000)))
        largest = np.repeat([np.max(np.abs(given[:256])), np.max(np.abs(given[256:]))], [256, 44])
        # Elements that would round to 0 become the least code if there is no sign.
        large = np.ones(300, bool) if signed else given > largest / 509
        # The standard error of a mean of 2000, which is at most half the distance of two codes over their root.
        bound = 5 * (2 / (127 if signed else 255)) / 2 / np.sqrt(2000) * largest
        assert np.all((np.abs(np.mean(found, axis=0) - given) < bound)[large])
        assert np.all(found[:, given == 0] == 0)
        np.testing.assert_allclose(found[:, np.argmax(np.abs(given))], given[np.argmax(np.abs(given))], rtol=1e-6)
        assert np.all(np.max(found, axis=0) - np.min(found, axis=0) <= 4 / (127 if signed else 255) * largest)


def test_a_mean_with_a_decay_of_0_999_follows_only_with_random_rounding():
    sizes = jnp.ones(256).at[::2].set(0.1)
    start = encode(jnp.ones(256), signed=False)

    def mean(stored, key):
        return encode(jnp.sqrt(0.999 * decode(stored) ** 2 + 0.001 * sizes**2), signed=False, key=key)

    keys = jax.random.split(jax.random.key(0), 8000)
    at_random, _ = jax.jit(lambda start: jax.lax.scan(lambda x, key: (mean(x, key), None), start, keys))(start)
    nearest, _ = jax.jit(lambda start: jax.lax.scan(lambda x, _: (mean(x, None), None), start, keys))(start)
    np.testing.assert_array_equal(decode(nearest), 1.0)
    found = np.asarray(decode(at_random))
    np.testing.assert_array_equal(found[1::2], 1.0)
    assert np.mean(found[::2]) == pytest.approx(0.1, rel=0.05)
    assert np.max(found[::2]) < 0.2


def test_pytrees_go_to_8_bits_and_back():
    shapes = {
        "kernel": jax.ShapeDtypeStruct((3, 300), jnp.float32),
        "complex": jax.ShapeDtypeStruct((4,), jnp.complex64),
        "scale": jax.ShapeDtypeStruct((), jnp.float32),
        "column": jax.ShapeDtypeStruct((7, 1), jnp.float32),
    }
    mu, root = companded_zeros(shapes, signed=True), companded_zeros(shapes, signed=False)
    assert isinstance(mu["kernel"], Companded)
    assert (mu["kernel"].codes.dtype, root["kernel"].codes.dtype) == (jnp.int8, jnp.uint8)
    assert mu["kernel"].scales.shape == (3, 2)
    assert (mu["complex"].dtype, root["complex"].dtype) == (jnp.complex64, jnp.float32)
    assert not isinstance(mu["scale"], Companded)
    assert not isinstance(mu["column"], Companded)
    plain = as_computed((mu, root), jnp.float32)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(plain))
    ones = jax.tree.map(jnp.ones_like, plain)
    again = jax.jit(as_kept)(ones, (mu, root), jnp.array(1), None)
    assert jax.tree.structure(again) == jax.tree.structure((mu, root))
    assert jax.tree.map(jnp.result_type, again) == jax.tree.map(jnp.result_type, (mu, root))
    jax.tree.map(np.testing.assert_array_equal, as_computed(again, jnp.float32), ones)


def test_rows_keep_their_sharding():
    mesh = Mesh(np.array(jax.devices()[:8]), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    array = jax.device_put(numbers((16, 600)), sharding)
    stored = jitted(array)
    for leaf in stored:
        assert leaf.sharding.is_equivalent_to(sharding, 2)
    whole = jitted(np.asarray(array))
    np.testing.assert_array_equal(stored.codes, whole.codes)
    assert "all-gather" not in jax.jit(encode).lower(array).compile().as_text()
    zeros = companded_zeros(jax.ShapeDtypeStruct((16, 600), jnp.float32, sharding=sharding), signed=True)
    for leaf in zeros:
        assert leaf.sharding.is_equivalent_to(sharding, 2)


def test_complex_and_integer_arrays_are_refused():
    for array in (jnp.ones(3, jnp.complex64), jnp.ones(3, jnp.int32)):
        with pytest.raises(TypeError, match="array must be real, to be stored in 8 bits; got dtype"):
            encode(array)
