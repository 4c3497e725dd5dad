"""The root of a sum of two squares is that of exact arithmetic where numbers are normal, and has derivatives at 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from novoclip.safe_math import hypotenuse


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_roots_are_those_of_exact_arithmetic_over_the_whole_range(dtype):
    info, generator = np.finfo(dtype), np.random.default_rng(0)
    exponents = generator.uniform(info.minexp, info.maxexp - 1, 20_000).astype(int)
    large = np.ldexp(generator.uniform(1, 2, exponents.size), exponents).astype(dtype)
    small = np.ldexp(large, -generator.integers(0, 60, exponents.size)).astype(dtype)
    small[small < info.tiny] = 0
    exact = np.hypot(large.astype(np.longdouble), small.astype(np.longdouble))
    for one, other in ((large, small), (small, large)):
        found = np.asarray(jax.jit(hypotenuse)(one, other))
        inside = exact <= info.max
        assert np.all(np.abs(found - exact)[inside] <= 1.5 * np.spacing(found[inside]))
    edges = np.array([0, np.inf, np.nan, info.max], dtype)
    np.testing.assert_array_equal(jax.jit(hypotenuse)(edges, np.zeros_like(edges)), edges)


def test_second_derivatives_through_a_scan_are_those_of_squares_and_finite_at_zero():
    """JAX drops the rule of the derivative there. The roots' squares are x^2 times 0.09, 0.09 1.81 and 0.09 2.4661."""

    def total(x):
        def step(root, _):
            root = hypotenuse(0.9 * root, 0.3 * jnp.abs(x))
            return root, jnp.square(root)

        return jnp.sum(jax.lax.scan(step, jnp.zeros_like(x), None, length=3)[1])

    x = np.float32([0.0, 2.0])
    gradient, moved = jax.jit(lambda x: jax.jvp(jax.grad(total), (x,), (jnp.ones_like(x),)))(x)
    np.testing.assert_allclose(gradient, 2 * 0.09 * 5.2761 * x, rtol=1e-5)
    assert np.isfinite(moved[0])
    np.testing.assert_allclose(moved[1], 2 * 0.09 * 5.2761, rtol=1e-5)
