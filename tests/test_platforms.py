"""Rows of an array, taken one by one, are its rows; and the kernels that use them are alike."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from novoclip.platforms import ROW, entries, pieces


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


def test_pieces_are_consecutive_slices():
    lengths = (3, 1, 3, 0, 2, 1)
    rows = np.arange(20.0, dtype=np.float32).reshape(10, 2)
    found = jax.jit(pieces, static_argnums=1)(rows, lengths)
    for piece, expected in zip(found, np.split(rows, np.cumsum(lengths)[:-1]), strict=True):
        np.testing.assert_array_equal(piece, expected)


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
    assert "stablehlo.concatenate" not in text
    assert "stablehlo.divide" not in text


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

        text = jax.jit(step).lower(params, jax.eval_shape(rule.init, params), params).compile().as_text()
        bodies = re.findall(r"^%?\S*fused_computation\S* .*?^\}", text, re.MULTILINE | re.DOTALL)
        return len({re.sub(r"[%.]?[\w-]*\.\d+|%[\w.-]+|metadata=\{[^}]*\}", "", b.split("\n", 1)[-1]) for b in bodies})

    assert kernels(60) - kernels(30) <= 6


@pytest.mark.parametrize(
    ("ours", "theirs"), [(novoclip.adam(0.1), optax.adam(0.1)), (novoclip.sgd(0.1), optax.sgd(0.1))]
)
def test_leaves_of_one_shape_are_lowered_once(ours, theirs):
    params = {str(i): jax.ShapeDtypeStruct((40, 30), jnp.float32) for i in range(60)}

    def operations(transform):
        state = jax.eval_shape(transform.init, params)
        text = jax.jit(transform.update).lower(params, state, params).as_text()
        return len(re.findall(r"^\s+(?:%\S+ = )?\"?stablehlo\.", text, re.MULTILINE))

    found = operations(ours)
    # The barrier and the sum that look for NaN, and little else.
    assert found <= max(operations(theirs), 12 * len(params))
