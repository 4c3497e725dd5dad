"""First and second derivatives through rules and optimizers, over steps with state, beside central differences."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import novoclip
from novoclip.rules.spectral import singular_values
from tests.cases import CASES, FIRST, SEVERAL

FASTER = {"xla_backend_optimization_level": 0}  # to compile
PARAMS = {"kernel": np.random.default_rng(0).normal(size=(4, 3)) + 2}
SLOPES = np.random.default_rng(1).normal(size=(3, 4, 3)) * np.array([1.0, 1.3, 0.7])[:, None, None]


def of_three_steps(transform, kernel_of, params, *, steps=3):
    """A smooth function of the updates of three steps, whose gradients are made of three arrays."""

    def body(state, slopes):
        updates, state = transform.update({"kernel": kernel_of(slopes)}, state, params)
        u = updates["kernel"]
        return state, jnp.sum(u * jnp.cos(jnp.arange(u.size, dtype=u.dtype)).reshape(u.shape) + 0.5 * u * u)

    slopes = jnp.asarray(SLOPES, params["kernel"].dtype)
    if steps == 1:
        return body(transform.init(params), slopes[0])[1]
    return jnp.sum(lax.scan(body, transform.init(params), slopes)[1])


def program(function):
    """The program of (at, along) that gives value and gradient at a place, and their derivatives along a direction."""
    both = jax.value_and_grad(function)
    return jax.jit(lambda at, along: jax.jvp(both, (at,), (along,)), compiler_options=FASTER)


def program_of(case, dtype):
    params = {"kernel": jnp.asarray(PARAMS["kernel"], dtype)}
    # Inside scan, JAX loses the name of a vmap's axis, and takes the custom derivative of singular vectors apart.
    steps = 1 if case.entry.name in ("across_shards", "clip_by_spectral_norm") else 3

    def function(at):
        return of_three_steps(
            case.transform(), lambda slopes: slopes * at[0, 0] + at[1:] * slopes[0, 0], params, steps=steps
        )

    return program(function)


def assert_differences(derive, at, along, *, step=1e-6, second=True):
    """The derivatives of value and gradient along a direction are their central differences."""
    (_, gradient), moved = derive(at, along)
    ahead, behind = (derive(at + sign * step * along, along)[0] for sign in (1, -1))
    for found, one, other in zip(moved, ahead, behind, strict=True):
        expected = (np.asarray(one) - np.asarray(other)) / (2 * step)
        np.testing.assert_allclose(found, expected, atol=1e-6 * (1 + np.max(np.abs(expected))), rtol=1e-6)
        if not second:
            break
    np.testing.assert_allclose(moved[0], np.sum(np.asarray(gradient) * along), rtol=1e-9, atol=1e-12)


def cases(names=None):
    some = names or SEVERAL
    return [
        pytest.param(case, id=case.name, marks=() if case in FIRST and case.entry.name in some else pytest.mark.full)
        for case in CASES
        if names is None or case.entry.name in names
    ]


# at[0, 0] is a scale of the gradients of all steps; the rest is added to them.
START = np.zeros((5, 3))
START[0, 0] = 1.7
SCALE, ELEMENT = np.zeros((5, 3)), np.zeros((5, 3))
SCALE[0, 0] = ELEMENT[2, 1] = 1.0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", cases())
def test_derivatives_over_three_steps_are_central_differences_and_finite_at_zero(case):
    derive = program_of(case, jnp.float64)
    for along in (SCALE, ELEMENT):
        assert_differences(derive, START, along)
    for size in (0.0, 1e-30):
        assert_finite(derive, size, jnp.float64)


def assert_finite(derive, size, dtype):
    at = jnp.asarray(START * size, dtype)
    for found in jax.tree.leaves(derive(at, jnp.asarray(SCALE + ELEMENT, dtype))):
        assert np.all(np.isfinite(found)), f"at {size}: {found}"


# Where a gradient is divided by its own norm, the second derivatives at 1e-30, 1e60, are beyond float32.
SINGLE = ("clip_by_norm", "autoclip", "agc", "delta_gclip", "clip_by_running_quantile")


@pytest.mark.parametrize("case", cases(SINGLE))
def test_hessians_are_finite_in_float32(case):
    derive = program_of(case, jnp.float32)
    for size in (0.0, 1e-30, 1.0):
        assert_finite(derive, size, jnp.float32)


NUMBERS = {
    "clip_by_norm": novoclip.clip_by_norm,
    "zclip": lambda x: novoclip.zclip(x, warmup=1, max_norm=5.0),
    "autoclip": lambda x: novoclip.autoclip(60 * x, window=3),
    "clip_by_running_mean": lambda x: novoclip.clip_by_running_mean(1 + x / 4),
    "clip_by_running_quantile": lambda x: novoclip.clip_by_running_quantile(0.5, rate=x),
    "adagc": lambda x: novoclip.adagc(1 + x / 4, lambda_abs=x, warmup=1),
    "agc": lambda x: novoclip.agc(x / 10),
    "normalize_by_norm": novoclip.normalize_by_norm,
    "nsgd": lambda x: novoclip.nsgd(x, decay=1 - x / 2),
    "adam": lambda x: novoclip.adam(x, b1=1 - x / 2, b2=1 - x / 4, eps=x / 8),
    "sgd": lambda x: novoclip.sgd(x, weight_decay=x, clip=novoclip.clip_by_global_norm(x)),
    "acclip": lambda x: novoclip.acclip(x, alpha=1 + x / 2),
    "novoclip": lambda x: novoclip.novoclip(x, clipping=2 * x),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NUMBERS)
def test_derivatives_with_respect_to_arguments_that_are_arrays(name):
    params = {"kernel": jnp.asarray(PARAMS["kernel"])}
    derive = program(lambda x: of_three_steps(NUMBERS[name](x), lambda slopes: slopes, params))
    assert_differences(derive, jnp.array(0.7), jnp.array(1.0))


@pytest.mark.usefixtures("x64")
def test_spectral_clipping_has_derivatives_where_singular_values_are_zero_or_equal():
    rule = novoclip.clip_by_spectral_norm(1.0)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=FASTER)
    def derive(shape, kernel, along):
        def function(x):
            updates, _ = rule.update(x.reshape(shape), rule.init(x.reshape(shape)))
            return jnp.sum(updates * jnp.cos(jnp.arange(x.size)).reshape(shape))

        return jax.jvp(jax.value_and_grad(function), (kernel,), (along,))

    for shape in ((4, 3), (3, 4)):
        rng = np.random.default_rng(1)
        left, right = (np.linalg.qr(rng.normal(size=(size, 3)))[0] for size in shape)
        for values in ((0, 0, 0), (5, 0, 0), (5, 5, 0), (5, 3, 0.5), (0.5, 0.5, 0.5)):
            kernel, along = ((left * values) @ right.T).ravel(), rng.normal(size=12)
            assert_differences(functools.partial(derive, shape), kernel, along, second=False)
            assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(derive(shape, kernel, along))), values


@pytest.mark.usefixtures("x64")
def test_spectral_clipping_of_complex_matrices_has_its_derivative():
    rng = np.random.default_rng(0)
    kernel, along = (rng.normal(size=(4, 3)) + 1j * rng.normal(size=(4, 3)) for _ in range(2))
    measure = singular_values()

    def function(x):
        tree = kernel + x * along
        old = measure.norms(tree)
        new = measure.rescale(tree, old, jnp.tanh(old)).ravel()
        return jnp.sum(jnp.cos(jnp.arange(12)) * new.real + jnp.sin(jnp.arange(12)) * new.imag)

    derive = program(function)
    assert_differences(derive, jnp.array(0.1), jnp.array(1.0), second=False)
