"""Checks by chex and Hypothesis: every way to compile and place a call, and gradients of any values."""

from typing import Any
import unittest

import chex
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from novoclip.testing.subject import SMALL, Subject, is_finite, numbers, of_dtype, random_tree

# Beyond this, sums of a few elements overflow in float32.
LARGEST = 2.0**100
# The first failure is reported as it is, since the search for a smaller one takes minutes.
SETTINGS = settings(
    max_examples=15,
    phases=[Phase.generate],
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
MIXED = {"kernel": ((3, 2), jnp.float32), "bias": ((2,), jnp.bfloat16), "scale": ((), jnp.float32)}


def every_chex_variant_agrees(subject: Subject) -> None:
    """The result is the same with and without jit, with and without device, and under pmap."""
    # One leaf, since without jit every operation is compiled for each shape.
    params, first, gradients = (random_tree(seed, shapes=SMALL) for seed in (0, 1, 2))
    _, state = subject.jitted.update(first, subject.jitted.init(params), params)
    expected = subject.jitted.update(gradients, state, params)

    class Variants(chex.TestCase):
        """One test, which chex runs in all variants."""

        @chex.all_variants
        def test_update(self) -> None:
            updates, after = self.variant(subject.update)(gradients, state, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradients)
            found = jax.tree.map(numbers, (updates, after))
            chex.assert_trees_all_close(found, jax.tree.map(numbers, expected), rtol=1e-5, atol=1e-6)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Variants).run(result)
    for _, trace in (*result.failures, *result.errors):
        raise AssertionError(trace.rpartition("Error: ")[2])
    assert result.testsRun > len(result.skipped), "chex ran no variant"


def finite_gradients_give_finite_updates(subject: Subject) -> None:
    """Pytrees of finite values up to 2^100, with zeros and subnormals, in float32 and bfloat16, give finite updates."""
    params = {name: of_dtype(np.ones(shape), dtype) for name, (shape, dtype) in MIXED.items()}
    run = subject.jitted

    @SETTINGS
    @given(st.tuples(_trees(), _trees(), _trees()))
    def steps(all_gradients: Any) -> None:
        state = run.init(params)
        for gradients in all_gradients:
            updates, after = run.update(gradients, state, params)
            again, _ = run.update(gradients, state, params)
            jax.tree.map(np.testing.assert_array_equal, updates, again)
            chex.assert_trees_all_equal_shapes(updates, gradients)
            chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
            assert is_finite(updates), f"{gradients} became {updates}"
            state = after

    steps()


def _trees() -> st.SearchStrategy[dict[str, jax.Array]]:
    number = st.floats(-LARGEST, LARGEST, width=32) | st.sampled_from([0.0, -0.0, 2.0**-140, LARGEST, -LARGEST])

    def leaf(shape: tuple[int, ...], dtype: Any) -> st.SearchStrategy[jax.Array]:
        size = int(np.prod(shape))
        numbers = st.lists(number, min_size=size, max_size=size)
        return numbers.map(lambda found: of_dtype(np.reshape(np.array(found, np.float32), shape), dtype))

    return st.fixed_dictionaries({name: leaf(*kind) for name, kind in MIXED.items()})
