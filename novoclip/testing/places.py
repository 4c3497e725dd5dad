"""Checks in jit, scan and vmap, with donated buffers, and in Optax's wrappers."""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from novoclip.testing.subject import SMALL, Subject, numbers, random_tree

STEPS = 3


def same_result_in_jit_scan_and_vmap(subject: Subject) -> None:
    """Updates and states agree, to rounding, in jit and in a scan of vmap."""
    runs = [[random_tree(seed, scale=scale) for seed in range(STEPS)] for scale in (1.0, 1e30)]

    @jax.jit
    def mapped(steps: Any) -> Any:
        def step(state: Any, gradients: Any) -> Any:
            updates, state = jax.vmap(subject.update)(gradients, state, first)
            return state, updates

        first = jax.tree.map(lambda leaf: leaf[0], steps)
        return jax.lax.scan(step, jax.vmap(subject.init)(first), steps)

    found = jax.tree.map(numbers, mapped(_stacked([_stacked(each) for each in zip(*runs, strict=True)])))
    for index, run in enumerate(runs):
        state = subject.jitted.init(run[0])
        for number, gradients in enumerate(run):
            updates, state = subject.jitted.update(gradients, state, run[0])
            _assert_close(jax.tree.map(lambda leaf, at=(number, index): leaf[at], found[1]), updates)
        _assert_close(jax.tree.map(lambda leaf, index=index: leaf[index], found[0]), state)


def donated_buffers_are_distinct(subject: Subject) -> None:
    """No two arrays of the state share a buffer: it can be donated at every step."""
    params = random_tree(shapes=SMALL)
    _assert_distinct(subject.init(random_tree()))
    state = subject.init(params)
    step = jax.jit(subject.update, donate_argnums=(1,))
    for seed in range(STEPS):
        _assert_distinct(state)
        _, state = step(random_tree(seed, shapes=SMALL), state, params)
    _check_steps(subject, state, STEPS)


def _assert_distinct(state: Any) -> None:
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array) and leaf.size]
    buffers = [leaf.unsafe_buffer_pointer() for leaf in arrays if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert len(buffers) == len(set(buffers)), f"two arrays share a buffer in {state}"


def one_program_serves_every_step(subject: Subject) -> None:
    """Later steps compile nothing, and the program has no callback to the host."""
    params, run = random_tree(), subject.jitted
    state = run.init(params)
    traced = []
    for seed in range(STEPS):
        _, state = run.update(random_tree(seed), state, params)
        traced.append(len(run.traces))
    assert len(set(traced)) == 1, f"later steps were traced again: {traced}"
    program = str(jax.make_jaxpr(subject.update)(random_tree(), state, params))
    assert "callback" not in program, "the program calls back to the host"


def carried_through_cond_and_optax_wrappers(subject: Subject) -> None:
    """The state fits lax.cond, MultiSteps, apply_if_finite, masked and partition."""
    params = random_tree()
    mask = {name: name != "bias" for name in params}
    labels = {name: "on" if name == "kernel" else "off" for name in params}
    transform = subject.transform
    wrapped = (
        optax.MultiSteps(transform, every_k_schedule=2).gradient_transformation(),
        optax.apply_if_finite(transform, max_consecutive_errors=2),
        optax.masked(transform, mask),
        optax.partition({"on": transform, "off": optax.set_to_zero()}, labels),
    )
    for each in wrapped:
        state = jax.eval_shape(each.init, params)
        _, after = jax.eval_shape(each.update, params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)

    def step(state: Any, on: jax.Array) -> Any:
        return jax.lax.cond(on, lambda s: subject.update(params, s, params)[1], lambda s: s, state)

    jax.eval_shape(step, jax.eval_shape(subject.init, params), np.array(True))


def _stacked(trees: Sequence[Any]) -> Any:
    # By NumPy, so that nothing is compiled.
    return jax.tree.map(lambda *leaves: jax.device_put(np.stack([np.asarray(leaf) for leaf in leaves])), *trees)


def _check_steps(subject: Subject, state: Any, steps: int) -> None:
    assert subject.kind == "any" or int(state.steps) == steps, f"{state.steps} steps after {steps} updates"


def _assert_close(one: Any, other: Any) -> None:
    def close(a: Any, b: Any) -> None:
        a, b = (numbers(leaf).astype(np.float64) for leaf in (a, b))
        # Sums of terms of both signs round relative to the terms, not to the sum.
        largest = np.max(np.abs(b), initial=0, where=np.isfinite(b))
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7 * largest + 1e-37)

    jax.tree.map(close, one, other)
