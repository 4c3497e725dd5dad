"""Checks of places: jit, scan, vmap, donation, and Optax's wrappers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from novoclip.testing.subject import Subject, random_tree

STEPS = 3


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
        buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if leaf.size]
        assert len(buffers) == len(set(buffers)), f"two arrays share a buffer in {state}"
        _, state = step(random_tree(seed), state, params)
    assert int(state.steps) == STEPS, f"{state.steps} steps after {STEPS} updates"


def one_program_serves_every_step(subject: Subject) -> None:
    """Later steps compile nothing, and the program calls nothing on the host."""
    params = random_tree()
    traces = []

    def traced(gradients: Any, state: Any) -> Any:
        traces.append(1)
        return subject.update(gradients, state, params)

    step = jax.jit(traced)
    state = subject.init(params)
    for seed in range(STEPS):
        _, state = step(random_tree(seed), state)
    assert len(traces) == 1, f"{len(traces)} programs for {STEPS} steps"
    program = str(jax.make_jaxpr(traced)(random_tree(), state))
    assert "callback" not in program, "the program calls back to the host"


def carried_through_cond_and_optax_wrappers(subject: Subject) -> None:
    """The state fits lax.cond, MultiSteps, apply_if_finite, masked and partition."""
    params = random_tree()
    mask = {name: name != "bias" for name in params}
    labels = {name: "on" if name == "kernel" else "off" for name in params}
    transform = subject.transform
    for wrapped in (
        optax.MultiSteps(transform, every_k_schedule=2).gradient_transformation(),
        optax.apply_if_finite(transform, max_consecutive_errors=2),
        optax.masked(transform, mask),
        optax.partition({"on": transform, "off": optax.set_to_zero()}, labels),
    ):
        state = wrapped.init(params)
        step = jax.jit(wrapped.update)
        for seed in range(STEPS):
            _, state = step(random_tree(seed), state, params)
    state = subject.init(params)

    @jax.jit
    def maybe(on: jax.Array, state: Any) -> Any:
        return jax.lax.cond(on, lambda s: subject.update(random_tree(1), s, params)[1], lambda s: s, state)

    assert int(maybe(jnp.array(True), state).steps) == 1, "cond took the wrong branch"


def _assert_close(one: Any, other: Any) -> None:
    def close(a: Any, b: Any) -> None:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # Sums of both signs round to a part of their terms, not of themselves.
        largest = np.max(np.abs(b), initial=0, where=np.isfinite(b))
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7 * largest + 1e-37)

    jax.tree.map(close, one, other)
