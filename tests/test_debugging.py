"""Debugging modes, fast mathematics, huge shapes, NumPy's float64, and NaN in long arrays."""

import contextlib
import functools
import inspect
import os
import subprocess
import sys
import warnings

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from novoclip.leaves import finite_leaves
from novoclip.testing.subject import random_tree
from tests.cases import AROUND, CASES, FIRST, sampled
from tests.programs import ROOT, WRITES_IN_PLACE


def named(cases):
    return [pytest.param(case, id=case.name) for case in cases]


@contextlib.contextmanager
def strict():
    with (
        jax.debug_infs(True),
        jax.debug_nans(True),
        jax.enable_checks(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        yield


def run(transform, params, sizes, update=None):
    state = transform.init(params)
    for seed, size in enumerate(sizes):
        updates, state = (update or transform.update)(random_tree(seed + 1, scale=size), state, params)
    return updates, state


# Those that compute limits or divide by sizes, each in another way.
LIMITED = (
    *("clip_by_global_norm", "clip_by_second_moment", "autoclip", "clip_by_running_quantile", "zclip", "agc", "clippy"),
    *("clip_by_spectral_norm", "uclip", "skip_spikes", "adam", "novograd", "novoclip", "nsgd"),
)


@pytest.mark.parametrize("case", sampled(FIRST, LIMITED))
def test_finite_gradients_pass_under_every_debugging_mode(case):
    transform = case.transform()
    sizes = (1.0, 2.0, 0.0, 1e4, 1e-30)
    with strict():
        jitted = run(transform, random_tree(), sizes, jax.jit(transform.update))
    plain = run(transform, random_tree(), sizes, jax.jit(transform.update))
    # No limit is infinite, and the largest number where infinity is forbidden.
    most = np.finfo(np.float32).max
    for one, other in zip(jax.tree.leaves(jitted), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, np.minimum(other, most) if other.dtype == np.float32 else other, rtol=1e-6)


EAGER = ("autoclip", "zclip", "novoclip")


@pytest.mark.parametrize("case", named(case for case in FIRST if case.entry.name in EAGER))
def test_finite_gradients_pass_under_every_debugging_mode_without_jit(case):
    with strict():
        run(case.transform(), random_tree(), (1.0, 0.0))


def test_a_state_from_before_works_under_debug_infs():
    for rule in (
        novoclip.autoclip(90.0, window=4),
        novoclip.clip_by_running_quantile(0.9),
        novoclip.adagc(lambda_abs=1.0, warmup=2),
    ):
        params = random_tree()
        state = jax.jit(rule.init)(params)
        _, expected = jax.jit(rule.update)(random_tree(1), state, params)
        with jax.debug_infs(True):  # another function: JAX keeps what it traced before
            _, state = jax.jit(functools.partial(rule.update))(random_tree(1), state, params)
        np.testing.assert_allclose(state.limits, expected.limits, rtol=1e-6)


def everywhere():
    """Each entry at each of its granularities and norms."""
    for case in CASES:
        parameters = inspect.signature(case.entry.make).parameters
        kept = {name: value for name, value in case.arguments.items() if name not in ("per", "norm")}
        for per in case.entry.per if "per" in parameters else (None,):
            for norm in ("l2", "rms") if "norm" in parameters and per not in (None, "element") else (None,):
                given = {"per": per, "norm": norm}
                if per == "element" and "window" in parameters:
                    given |= {"window": 4}
                arguments = kept | {key: value for key, value in given.items() if value is not None}
                transform = case.entry.make(**arguments)
                yield case.name, AROUND[case.entry.place](transform) if case.entry.place in AROUND else transform


@pytest.mark.full
def test_more_than_two_to_the_31_numbers_pass():
    params = {"square": jax.ShapeDtypeStruct((70000, 70000), jnp.float32), "vector": jnp.zeros(3)}
    for _, transform in everywhere():
        jax.eval_shape(lambda tree, rule=transform: rule.update(tree, rule.init(tree), tree), params)


@pytest.mark.parametrize("kind", [np.float64, np.complex128])
def test_numpys_float64_without_x64_causes_no_warning(kind):
    shapes = {"kernel": (4, 3), "bias": (3,)}
    generator = np.random.default_rng(0)
    params, gradients = (
        {name: generator.normal(size=shape).astype(kind) * (1 + 1j if kind is np.complex128 else 1)
         for name, shape in shapes.items()} | {"number": 0.5}
        for _ in range(2)
    )  # fmt: skip
    wrapped = (
        ("guard", novoclip.guard_nonfinite(novoclip.adam(0.1))),
        ("spikes", novoclip.skip_spikes(novoclip.adam(0.1))),
    )
    chosen = [(case.name, case.transform()) for case in (FIRST if kind is np.float64 else FIRST[::6])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _, transform in (*chosen, *wrapped):
            # Traced alone: arrays reach it as they are, and nothing is compiled.
            jax.eval_shape(lambda rule=transform: rule.update(gradients, rule.init(params), params))
        descent = novoclip.adam(np.float64(0.1), clip=novoclip.clip_by_norm(np.ones(3)))
        updates, _ = descent.update(gradients, descent.init(params), params)
    assert updates["kernel"].dtype == (jnp.float32 if kind is np.float64 else jnp.complex64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", ["l1", "l2", "max", "rms"])
@pytest.mark.parametrize("per", ["tree", "tensor", "unit"])
def test_a_nan_in_a_long_array_is_seen(per, norm, dtype):
    """XLA's CPU backend loses NaN in maxima of 4096 numbers and more."""
    rule = novoclip.clip_by_norm(1.0, per=per, norm=norm)
    update = jax.jit(rule.update)
    for bad in (np.nan, np.inf):
        gradient = jnp.ones((5000, 2), dtype).at[3, 1].set(bad)
        updates, state = update(gradient, rule.init(gradient))
        assert int(state.nonfinite) == 1
        assert np.all(np.isfinite(np.asarray(updates, np.float32)))


@pytest.mark.parametrize("name", ["adaclip", "clippy", "clip_by_spectral_norm"])
def test_a_nan_in_a_long_array_is_seen_by_rules_that_use_maxima(name):
    rule = {case.entry.name: case.transform() for case in FIRST}[name]
    gradient = jnp.ones((5000, 2)).at[3, 1].set(jnp.nan)
    updates, state = jax.jit(rule.update)(gradient, rule.init(gradient), jnp.ones((5000, 2)))
    assert int(state.nonfinite) == 1
    np.testing.assert_array_equal(updates, 0)


def test_finite_leaves_knows_sums_beyond_the_range_of_numbers():
    largest = np.full(5000, np.finfo(np.float32).max)
    tree = {"a": largest, "b": -largest, "c": largest + 1j * largest, "d": np.array([1 + 1j * np.nan], np.complex64)}
    np.testing.assert_array_equal(jax.jit(finite_leaves)(tree), [True, True, True, False])


FAST = """
import jax, jax.numpy as jnp, novoclip as nc, optax
params = jnp.ones((64, 80))
chain = lambda rule: nc.guard_nonfinite(optax.chain(rule, optax.sgd(1.0)))
for make in (
    lambda: nc.guard_nonfinite(optax.sgd(1.0)), lambda: nc.guard_nonfinite(optax.sgd(1.0), policy="zero_leaf"),
    lambda: nc.skip_spikes(optax.sgd(1.0)), lambda: nc.adam(0.1), lambda: nc.novoclip(),
    lambda: nc.clip_by_global_norm(1.0), lambda: nc.clip_by_norm(1.0, norm="max"), lambda: nc.adaclip(),
    lambda: nc.clip_by_value(1.0, count=True), lambda: nc.clippy(), lambda: nc.record(),
    lambda: nc.uclip(nc.clip_by_global_norm(1.0)), lambda: nc.clip_by_second_moment(2.0, per="tensor", count=True),
):
    rule = make()
    update = jax.jit(rule.update)
    for bad in (jnp.nan, jnp.inf):
        updates, state = update(params.at[3, 5].set(bad), rule.init(params), params)
        print(int(state.nonfinite), bool(jnp.all(jnp.isfinite(updates))))
"""


HONOR = " --xla_cpu_fast_math_honor_nans=true --xla_cpu_fast_math_honor_infs=true"


@pytest.mark.parametrize("flags", ["", pytest.param(HONOR, marks=pytest.mark.full)])  # XLA's own choice, today
def test_what_is_not_finite_is_seen_under_fast_mathematics(flags):
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true" + flags, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FAST], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for i, line in enumerate(done.stdout.splitlines()):
        counted, finite = line.split()
        assert counted == "1", f"{i}: {line}"
        assert finite == "True" or i // 2 == 10, f"{i}: {line}"  # record changes nothing
    assert i == 25


@pytest.mark.parametrize(("dtype", "norm"), [(np.float32, "l2"), (np.float32, "l1"), (np.float64, "l2")])
@pytest.mark.parametrize("shape", ["hard", "drop"])
def test_what_was_clipped_before_is_not_clipped_again(shape, dtype, norm):
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    generator = np.random.default_rng(0)
    with enable(dtype is np.float64):
        first = novoclip.clip_by_norm(0.5, per="tree", norm=norm)
        second = novoclip.clip_by_norm(0.5, per="tree", norm=norm, shape=shape)
        params = {"a": jnp.zeros((31, 7), dtype), "b": jnp.zeros(1000, dtype)}
        once, again = jax.jit(first.update), jax.jit(second.update)
        states = first.init(params), second.init(params)
        for _ in range(50):
            gradients = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(dtype), params)
            clipped, one = once(gradients, states[0])
            twice, other = again(clipped, states[1])
            jax.tree.map(np.testing.assert_array_equal, twice, clipped)
            states = one, other
        assert (int(one.clipped), int(other.clipped)) == (50, 0)
        # A little more is beyond it.
        _, other = again(jax.tree.map(lambda x: x * (1 + 64 * float(jnp.finfo(dtype).eps)), clipped), states[1])
        assert int(other.clipped) == 1


def test_autoclip_after_a_clip_counts_nothing():
    rules = optax.chain(novoclip.clip_by_global_norm(0.5), novoclip.autoclip(10.0, window=100))
    params, generator = {"a": jnp.zeros((300, 7))}, np.random.default_rng(0)
    state, update = rules.init(params), jax.jit(rules.update)
    for _ in range(100):
        _, state = update({"a": generator.normal(size=(300, 7)).astype(np.float32)}, state)
    assert int(state[1].clipped) == 0


@WRITES_IN_PLACE
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["guard", "adam", "count"])
def test_searching_for_nan_makes_no_copy_of_the_gradients(name, dtype):
    make, most = {
        "guard": (lambda: novoclip.guard_nonfinite(novoclip.sgd(0.1)), 1.01),  # what the branch returns
        "adam": (lambda: novoclip.adam(0.1), 0.01),
        "count": (lambda: novoclip.clip_by_value(1.0, count=True), 0.01),
    }[name]
    transform = make()
    params = jax.ShapeDtypeStruct((4096, 1024), dtype)
    state = jax.eval_shape(transform.init, params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradients):
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    temporary = step.lower(params, state, params).compile().memory_analysis().temp_size_in_bytes
    assert temporary < most * params.size * params.dtype.itemsize
