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
from novoclip.testing.subject import SHAPES, random_tree
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


def run(transform, params, sizes, update=None, shapes=SHAPES):
    state = transform.init(params)
    for seed, size in enumerate(sizes):
        gradients = random_tree(seed + 1, scale=size, shapes=shapes)
        updates, state = (update or transform.update)(gradients, state, params)
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
FEW = {"kernel": (3, 2), "bias": (2,)}


@pytest.mark.parametrize("case", named(case for case in FIRST if case.entry.name in EAGER))
def test_finite_gradients_pass_under_every_debugging_mode_without_jit(case):
    with strict():
        run(case.transform(), random_tree(shapes=FEW), (1.0, 0.0), shapes=FEW)


def test_a_state_from_before_works_under_debug_infs():
    params = random_tree()
    rules = (
        novoclip.autoclip(90.0, window=4),
        novoclip.clip_by_running_quantile(0.9),
        novoclip.adagc(lambda_abs=1.0, warmup=2),
    )

    def limits(states, gradients):
        updated = [rule.update(gradients, state, params) for rule, state in zip(rules, states, strict=True)]
        return [state.limits for _, state in updated]

    states = jax.jit(lambda: [rule.init(params) for rule in rules])()
    expected = jax.jit(limits)(states, random_tree(1))
    with jax.debug_infs(True):  # another function: JAX keeps what it traced before
        found = jax.jit(functools.partial(limits))(states, random_tree(1))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


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
        clip = novoclip.clip_by_norm(np.ones(3))
        adam, sgd = (make(np.float64(0.1), clip=clip) for make in (novoclip.adam, novoclip.sgd))
        traced, _ = jax.eval_shape(lambda: adam.update(gradients, adam.init(params), params))
        computed, _ = sgd.update(gradients, sgd.init(params), params)
    for updates in (traced, computed):
        assert updates["kernel"].dtype == (jnp.float32 if kind is np.float64 else jnp.complex64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("per", ["tree", "tensor", "unit"])
def test_a_nan_in_a_long_array_is_seen(per, dtype):
    """XLA's CPU backend loses NaN in maxima of 4096 numbers and more."""
    rules = {norm: novoclip.clip_by_norm(1.0, per=per, norm=norm) for norm in ("l1", "l2", "max", "rms")}
    params = np.ones((5000, 2), jnp.dtype(dtype))
    states = {norm: rule.init(params) for norm, rule in rules.items()}
    step = jax.jit(lambda leaf, states: {norm: rule.update(leaf, states[norm]) for norm, rule in rules.items()})
    for bad in (np.nan, np.inf):
        gradient = params.copy()
        gradient[3, 1] = bad
        for norm, (updates, state) in step(gradient, states).items():
            assert int(state.nonfinite) == 1, norm
            assert np.all(np.isfinite(np.asarray(updates, np.float32))), norm


@pytest.mark.parametrize("name", ["adaclip", "clippy", "clip_by_spectral_norm"])
def test_a_nan_in_a_long_array_is_seen_by_rules_that_use_maxima(name):
    rule = {case.entry.name: case.transform() for case in FIRST}[name]
    params = np.ones((5000, 2), np.float32)
    gradient = params.copy()
    gradient[3, 1] = np.nan
    updates, state = jax.jit(rule.update)(gradient, rule.init(params), params)
    assert int(state.nonfinite) == 1
    np.testing.assert_array_equal(updates, 0)


def test_finite_leaves_knows_sums_beyond_the_range_of_numbers():
    largest = np.full(5000, np.finfo(np.float32).max)
    tree = {"a": largest, "b": -largest, "c": largest + 1j * largest, "d": np.array([1 + 1j * np.nan], np.complex64)}
    np.testing.assert_array_equal(jax.jit(finite_leaves)(tree), [True, True, True, False])


FAST = """
import jax, numpy as np, novoclip as nc, optax
params = np.ones((64, 80), np.float32)
rules = (
    nc.guard_nonfinite(optax.sgd(1.0)), nc.guard_nonfinite(optax.sgd(1.0), policy="zero_leaf"),
    nc.skip_spikes(optax.sgd(1.0)), nc.adam(0.1), nc.novoclip(),
    nc.clip_by_global_norm(1.0), nc.clip_by_norm(1.0, norm="max"), nc.adaclip(),
    nc.clip_by_value(1.0, count=True), nc.clippy(), nc.record(),
    nc.uclip(nc.clip_by_global_norm(1.0)), nc.clip_by_second_moment(2.0, per="tensor", count=True),
)
states = jax.jit(lambda: [rule.init(params) for rule in rules])()
for rule, start in zip(rules, states):
    update = jax.jit(rule.update)
    for bad in (np.nan, np.inf):
        gradients = params.copy()
        gradients[3, 5] = bad
        updates, state = update(gradients, start, params)
        print(int(state.nonfinite), bool(np.all(np.isfinite(updates))))
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
def test_what_was_clipped_before_is_not_clipped_again(dtype, norm):
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    generator = np.random.default_rng(0)
    with enable(dtype is np.float64):
        first = novoclip.clip_by_norm(0.5, per="tree", norm=norm)
        second = novoclip.clip_by_norm(0.5, per="tree", norm=norm, shape="drop")
        once, dropped = jax.jit(first.update), jax.jit(second.update)
        params = {"a": np.zeros((31, 7), dtype), "b": np.zeros(1000, dtype)}
        one, *others = (rule.init(params) for rule in (first, first, second))
        for _ in range(50):
            gradients = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(dtype), params)
            clipped, one = once(gradients, one)
            for i, again in enumerate((once, dropped)):
                twice, others[i] = again(clipped, others[i])
                jax.tree.map(np.testing.assert_array_equal, twice, clipped)
        assert int(one.clipped) == 50
        # A little more is beyond it.
        more = jax.tree.map(lambda x: np.asarray(x) * dtype(1 + 64 * np.finfo(dtype).eps), clipped)
        for again, other in zip((once, dropped), others, strict=True):
            assert int(other.clipped) == 0
            assert int(again(more, other)[1].clipped) == 1


def test_autoclip_after_a_clip_counts_nothing():
    rules = optax.chain(novoclip.clip_by_global_norm(0.5), novoclip.autoclip(10.0, window=100))
    params, generator = {"a": np.zeros((300, 7), np.float32)}, np.random.default_rng(0)
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
