"""Rules under chex: its variants, its count of traces, its assertions on trees."""

import chex
import jax
import jax.numpy as jnp
import optax

import novoclip
from novoclip.testing.subject import random_tree


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_every_variant_of_a_rule_gives_the_same(self):
        rule = novoclip.autoclip(50.0, window=3, per="tensor")
        update, compiled = self.variant(rule.update), jax.jit(rule.update)
        state = expected_state = rule.init(random_tree())
        for seed in range(4):
            gradients = random_tree(seed)
            updates, state = update(gradients, state)
            expected, expected_state = compiled(gradients, expected_state)
            chex.assert_trees_all_close(updates, expected, rtol=1e-6)
            chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradients)
        chex.assert_trees_all_close(state, expected_state, rtol=1e-6)


def test_training_traces_once_and_stays_finite():
    optimizer = optax.chain(novoclip.zclip(warmup=2), optax.adam(1e-2))
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, scale):
        gradients = jax.tree.map(lambda leaf: scale * leaf, jax.grad(lambda p: jnp.sum(p["w"] ** 2))(params))
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for scale in (1.0, 1.0, 1.0, 1e30, jnp.nan, 1.0):
        params, state = step(params, state, jnp.float32(scale))
    chex.assert_tree_all_finite((params, state[1]))
    assert int(state[0].nonfinite) == 1
