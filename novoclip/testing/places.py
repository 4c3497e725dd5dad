"""Checks of places: jit, scan, vmap, donation, and Optax's wrappers."""

import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from novoclip.testing.subject import Subject, numbers, random_tree

STEPS = 3
NUMBER = itertools.count()


def same_result_in_jit_scan_and_vmap(subject: Subject) -> None:
    """Updates and states agree, to rounding, with those of eager mode."""
    params = random_tree()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(random_tree(seed) for seed in range(STEPS)))

    def scanned(state: Any) -> Any:
        def step(state: Any, gradients: Any) -> Any:
            updates, state = subject.update(gradients, state, params)
            return state, updates

        return jax.lax.scan(step, state, stacked)

    state = subject.init(params)
    expected = []
    for seed in range(STEPS):
        updates, state = subject.update(random_tree(seed), state, params)
        expected.append(updates)
    final, updates = jax.jit(scanned)(subject.init(params))
    _assert_close(updates, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))
    _assert_close(final, state)

    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), random_tree(1), random_tree(2, scale=1e30))
    states = jax.vmap(subject.init)(both)
    mapped, states = jax.vmap(subject.update)(both, states, both)
    for index, gradients in enumerate((random_tree(1), random_tree(2, scale=1e30))):
        alone = subject.update(gradients, subject.init(params), gradients)
        _assert_close(jax.tree.map(lambda leaf, index=index: leaf[index], (mapped, states)), alone)


def donated_buffers_are_distinct(subject: Subject) -> None:
    """No two arrays of the state share a buffer: it can be donated at every step."""
    params = random_tree()
    state = subject.init(params)
    step = jax.jit(subject.update, donate_argnums=(1,))
    for seed in range(STEPS):
        arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array) and leaf.size]
        buffers = [
            leaf.unsafe_buffer_pointer() for leaf in arrays if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        ]
        assert len(buffers) == len(set(buffers)), f"two arrays share a buffer in {state}"
        _, state = step(random_tree(seed), state, params)
    _check_steps(subject, state, STEPS)


def one_program_serves_every_step(subject: Subject) -> None:
    """Later steps compile nothing, and the program calls nothing on the host."""
    params = random_tree()

    def update(gradients: Any, state: Any, params: Any) -> Any:
        return subject.update(gradients, state, params)

    # chex counts by name: a new one spares whoever counts as well.
    update.__name__ = f"update_{next(NUMBER)}"
    step = jax.jit(chex.assert_max_traces(update, n=1))
    state = subject.init(params)
    for seed in range(STEPS):
        _, state = step(random_tree(seed), state, params)
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

    @jax.jit
    def step(gradients: Any, states: Any, on: jax.Array) -> Any:
        *around, bare = states
        moved = [each.update(gradients, state, params)[1] for each, state in zip(wrapped, around, strict=True)]
        return *moved, jax.lax.cond(on, lambda s: subject.update(gradients, s, params)[1], lambda s: s, bare)

    states = (*(each.init(params) for each in wrapped), subject.init(params))
    for seed in range(STEPS):
        states = step(random_tree(seed), states, jnp.array(seed == 0))
    _check_steps(subject, states[-1], 1)


def _check_steps(subject: Subject, state: Any, steps: int) -> None:
    assert subject.kind == "any" or int(state.steps) == steps, f"{state.steps} steps after {steps} updates"


def _assert_close(one: Any, other: Any) -> None:
    def close(a: Any, b: Any) -> None:
        a, b = (numbers(leaf).astype(np.float64) for leaf in (a, b))
        # Sums of both signs round to a part of their terms, not of themselves.
        largest = np.max(np.abs(b), initial=0, where=np.isfinite(b))
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7 * largest + 1e-37)

    jax.tree.map(close, one, other)
