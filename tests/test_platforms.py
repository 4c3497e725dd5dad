"""Rows of an array, taken one by one, are its rows; and the kernels that use them are alike."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.compile import fusions, operations
import novoclip
from novoclip import platforms, written
from novoclip.platforms import ROW, entries, pieces
from novoclip.testing.subject import random_tree, true_norms
from tests.cases import FIRST


@pytest.mark.parametrize("number", [0, 1, 2, ROW, ROW + 1, 3 * ROW])
def test_entries_are_the_rows_bit_for_bit(number):
    rows = np.random.default_rng(number).normal(size=(number, 2)).astype(np.float32)
    for place, value in enumerate((np.nan, np.inf, -np.inf, -0.0, 3e38, 2e-38)):
        if place < number:
            rows[-1 - place, 0] = value
    for taken in (entries(rows), jax.jit(entries)(rows)):
        assert len(taken) == number
        for found, row in zip(taken, rows, strict=True):
            np.testing.assert_array_equal(found, row)


@pytest.mark.parametrize("number", [16, 17, 23])
def test_entries_of_more_blocks_than_a_block_has_rows(number, monkeypatch):
    monkeypatch.setattr(platforms, "ROW", 4)
    rows = np.random.default_rng(number).normal(size=(number, 2)).astype(np.float32)
    np.testing.assert_array_equal(entries(rows), rows)


def test_pieces_are_consecutive_slices():
    lengths = (3, 1, 3, 0, 2, 1)
    rows = np.arange(20.0, dtype=np.float32).reshape(10, 2)
    found = jax.jit(pieces, static_argnums=1)(rows, lengths)
    for piece, expected in zip(found, np.split(rows, np.cumsum(lengths)[:-1]), strict=True):
        np.testing.assert_array_equal(piece, expected)


def test_one_scalar_for_each_leaf_is_unchanged_and_has_no_derivative_of_the_leaf():
    leaves = [jnp.full((2, 3), jnp.nan), jnp.ones((4,), jnp.float16)]

    def scaled(numbers):
        return sum(written.one_each(numbers, leaves))

    numbers = [jnp.float32(3), jnp.float32(-5)]
    assert written.one_each(numbers, leaves) == jax.jit(written.one_each)(numbers, leaves) == numbers
    assert jax.grad(scaled)(numbers) == [1, 1]
    assert written.one_each([], []) == []


def test_entries_have_derivatives_and_map():
    def weighted(rows):
        return sum(i * entry[0] ** 2 for i, entry in enumerate(entries(rows)))

    rows = jnp.arange(1.0, 6.0)[:, None]
    np.testing.assert_allclose(jax.jit(jax.grad(weighted))(rows)[:, 0], 2 * np.arange(5) * rows[:, 0], rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(weighted)(rows), jax.jacrev(weighted)(rows), rtol=1e-6)
    many = jnp.stack([rows, 2 * rows])
    for entry, row in zip(jax.vmap(entries)(many), range(5), strict=True):
        np.testing.assert_array_equal(entry, many[:, row])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_elsewhere_rows_are_sliced(platform):
    rows = jax.ShapeDtypeStruct((20, 2), jnp.float32)
    text = jax.jit(entries).trace(rows).lower(lowering_platforms=(platform,)).as_text()
    assert not re.search(r"stablehlo\.(dynamic_slice|divide|optimization_barrier)", text)


def all_unchanged(number, leaf, state):
    """Everything that is written differently for a CPU, in values that it must not change."""
    (own,) = written.one_each([number], [leaf])
    again, apart = written.computed_again(state), written.kept_apart(state)
    first, *rest = jax.tree.leaves(apart)
    return own, written.written_out(leaf), again, written.written_in_turn(first, rest, rest)


NUMBER, LEAF = np.float32(3), np.array([[1.5, -np.inf, np.nan]], np.float32)
KEPT = (
    np.array([[np.nan, 1.5, -2]], np.float32),
    np.array([[7, -1, 0]], np.int32),
    np.array([[True, False, True]]),
    np.array([[1 + 2j, np.nan, -3j]], np.complex64),
    np.arange(6, dtype=np.float16).reshape(1, 3, 2),
    np.zeros((1, 3, 0), np.float32),
    np.array([[4, 5, 6]], np.uint8),
)


@pytest.mark.parametrize("run", [all_unchanged, jax.jit(all_unchanged)])
def test_what_is_for_xla_alone_changes_no_value(run):
    found = run(NUMBER, LEAF, KEPT)
    for one, expected in zip(jax.tree.leaves(found), (NUMBER, LEAF, *KEPT, *KEPT[1:]), strict=True):
        np.testing.assert_array_equal(one, expected)
        assert one.dtype == expected.dtype


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_elsewhere_nothing_is_done_for_xla_on_cpus(platform):
    text = jax.jit(all_unchanged).trace(NUMBER, LEAF, KEPT).lower(lowering_platforms=(platform,)).as_text()
    assert not re.search(r"stablehlo\.(select|divide|optimization_barrier|compare)", text)


def test_integers_are_not_written_out():
    found = written.written_out(jnp.arange(3))
    np.testing.assert_array_equal(found, jnp.arange(3))
    assert found.dtype == jnp.int32


RULES = {
    "norm": novoclip.clip_by_norm(1.0),
    "percentile": novoclip.autoclip(90.0, per="tensor"),
    "novograd": novoclip.novograd(0.1),
}


@pytest.mark.parametrize("name", RULES)
def test_more_tensors_of_one_shape_need_hardly_more_kernels(name):
    """Kernels that differ by the place of a slice were one for each tensor."""
    rule = RULES[name]

    def kernels(tensors):
        params = {str(i): jax.ShapeDtypeStruct((40, 30), jnp.float32) for i in range(tensors)}

        def step(gradients, state, params):
            updates, state = rule.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        return fusions(jax.jit(step).lower(params, jax.eval_shape(rule.init, params), params).compile())

    assert kernels(60) - kernels(30) <= 6


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_leaves_of_one_shape_are_lowered_once(name):
    """What each leaf adds are calls, and not the operations of the formula."""
    transform = getattr(novoclip, name)(0.1)

    def of_leaves(leaves):
        params = {str(i): jax.ShapeDtypeStruct((40, 30), jnp.float32) for i in range(leaves)}
        state = jax.eval_shape(transform.init, params)
        return operations(jax.jit(transform.update).lower(params, state, params))

    assert of_leaves(40) - of_leaves(20) <= 20 * 10  # Optax's Adam: 30 for each leaf


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("case", "platform"),
    [
        pytest.param(case, platform, id=f"{case.name}-{platform}", marks=marks)
        for case in FIRST
        for platform in ("cuda", "tpu")
        for marks in [() if platform == "cuda" or case.entry.name in ("autoclip", "adam") else pytest.mark.full]
    ],
)
def test_no_rule_makes_the_host_of_an_accelerator_wait(case, platform):
    """No loop, no branch whose index is computed, no float64 for float32 parameters."""
    transform, params = case.transform(), random_tree(dtype=jnp.float32)
    state = jax.eval_shape(transform.init, params)
    extra = {"value": jnp.float32(1.0)} if case.entry.name == "skip_spikes" else {}
    update = functools.partial(transform.update, **extra)
    text = jax.jit(update).trace(params, state, params).lower(lowering_platforms=(platform,)).as_text()
    # On a TPU jnp.linalg.svd is a loop.
    assert "stablehlo.while" not in text or (case.entry.name, platform) == ("clip_by_spectral_norm", "tpu")
    assert "xf64" not in text  # Python's numbers are scalars of it
    # What `watch` measures is in a branch everywhere, as its docstring says.
    assert len(computed_branches(text)) == (case.entry.name == "watch")


def computed_branches(text):
    """The indices of branches that are no constants: those of lax.platform_dependent are, or come from one that is."""
    found = []
    for function in text.split("func.func")[1:]:  # names are those of a function
        constant = set(re.findall(r"(%\S+) = stablehlo.constant", function))
        for name, index in re.findall(r'(%\w+)(?::\d+)? = "stablehlo.case"\((%\S+?)\)', function):
            if index in constant:
                constant.add(name)
            else:
                found.append(index)
    return found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_sums_side_by_side_are_right_at_any_size(dtype, monkeypatch):
    """As on an accelerator, whose branch is taken here too."""

    taken = []

    def elsewhere(*arguments, default, **_):
        taken.append(default.__name__)
        return default(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", elsewhere)
    sizes = (1.0, 6e4, 6e-8) if dtype == "float16" else (0.0, 1.0, 1e30, 1e-30, np.inf)
    for per in ("tree", "tensor", "unit"):
        measure = novoclip.resolve_measure(per)
        for size in sizes:
            # Shapes that no other test has: their programs would be found in JAX's cache.
            tree = {"a": jnp.full((5, 17), size, dtype), "b": jnp.full((19,), size, dtype)}
            found = np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(measure.norms(tree))])
            np.testing.assert_allclose(found, np.ravel(true_norms(tree, per, "l2")), rtol=1e-6)
    assert "side_by_side" in taken


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (40, 5)),
        ("float32", (7, 3, 5)),
        ("bfloat16", (41, 5)),
        ("complex64", (3, 5)),
        ("complex64", (41, 5)),
    ],
)
def test_norms_of_columns_are_right_when_rows_are_summed_in_blocks(dtype, shape, monkeypatch):
    """As on a machine with one device, where a large matrix is; here a small one, in blocks of eight rows."""
    monkeypatch.setattr(platforms, "LARGE", 1)
    monkeypatch.setattr(platforms, "BLOCK", 8 * shape[-1])
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    jax.clear_caches()
    generator = np.random.default_rng(0)
    leaf = generator.normal(size=shape) + (1j * generator.normal(size=shape) if dtype == "complex64" else 0)
    for size in (1.0, 1e30, 1e-30):
        gradient = jnp.asarray(leaf * size, dtype)
        exact = np.asarray(gradient, np.complex128 if dtype == "complex64" else np.float64)
        (norms,) = jax.jit(novoclip.units("flax").norms)({"a": gradient}).arrays
        expected = np.sqrt(np.sum(np.abs(exact) ** 2, axis=tuple(range(len(shape) - 1)), keepdims=True))
        np.testing.assert_allclose(norms[0], expected, rtol=2e-6)
    text = jax.jit(novoclip.units("flax").norms).lower({"a": gradient}).as_text()
    assert text.count("stablehlo.while") == (2 if len(shape) == 2 and shape[0] >= 16 else 1)
    jax.clear_caches()


def test_a_rule_per_unit_over_a_large_matrix_has_no_copy_of_it():
    """In a process with one device, as most have: there rows are summed in blocks."""
    code = """
import jax, jax.numpy as jnp, novoclip, optax
rule = novoclip.agc(0.1)
params = {"w": jax.ShapeDtypeStruct((8192, 4096), jnp.float32)}
def step(params, state, gradients):
    updates, state = rule.update(gradients, state, params)
    return jax.tree.map(lambda p, u: p - u, params, updates), state
compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, jax.eval_shape(rule.init, params), params).compile()
print(compiled.memory_analysis().temp_size_in_bytes / (4 * 8192 * 4096), compiled.as_text().count(" while("))
"""
    usual = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=usual)
    share, loops = map(float, done.stdout.split()[-2:])
    assert loops == 4  # those over blocks, within those of the range of numbers: of gradients and of parameters
    assert share < 0.05


# As on a GPU, where x / x may not be 1.
ROUGH = """
import jax
from jax import lax
exact = jax.core.ShapedArray._truediv
jax.core.ShapedArray._truediv = staticmethod(lambda a, b: exact(a, b) * (1 + 2.0**-22))
lax.platform_dependent = lambda *arrays, default, **_: default(*arrays)
assert jax.jit(lambda x: x / x)(3.0) != 1
"""
CHECKED = """
import sys
from novoclip.testing import numerics
from tests.cases import FIRST
for case in FIRST:
    if case.entry.name in sys.argv[2:]:
        for check in sys.argv[1].split():
            getattr(numerics, check)(case.subject())
        print(case.entry.name)
"""
FINITE = "norms_are_those_of_float64 the_bound_is_honoured zero_gradients_give_zeros"
SOME = ["clip_by_norm"]
CUT = [case for case in FIRST if case.subject().kind == "clip" and case.subject().shape in ("hard", "drop")]
# per_example divides by the number of examples.
CLIPS = sorted(case.entry.name for case in CUT if case.entry.place != "examples")


@pytest.mark.parametrize("names", [SOME, pytest.param(CLIPS, marks=pytest.mark.full)], ids=["some", "all"])
@pytest.mark.parametrize(
    ("before", "checks", "flags"),
    [
        (ROUGH, "gradients_within_the_limit_are_untouched", ""),
        ("", f"gradients_within_the_limit_are_untouched {FINITE}", "--xla_cpu_enable_fast_math=true"),
    ],
    ids=["x / x is not 1", "fast mathematics"],
)
def test_rules_hold_where_arithmetic_is_not_that_of_ieee(before, checks, flags, names):
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": flags}
    command = [sys.executable, "-c", before + CHECKED, checks, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.split()) == names
