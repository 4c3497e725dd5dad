"""Steps of a transform."""

import jax
import numpy as np
import optax


def compiled(transform):
    """The transform as two programs. Called as it is, it is one for each operation and shape, which takes longer."""
    return optax.GradientTransformationExtraArgs(jax.jit(transform.init), jax.jit(transform.update))


apply_updates = jax.jit(optax.apply_updates)


def first_updates(rules, gradient):
    """The first updates of some rules, in one program."""
    return jax.jit(lambda gradient: [rule.update(gradient, rule.init(gradient))[0] for rule in rules])(gradient)


def stacked(trees):
    """One tree of some trees."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def steps_of(rules, gradients):
    """For each rule the updates and states of all steps, of which one program takes one of all rules."""
    states = [rule.init(gradients[0]) for rule in rules]
    step = jax.jit(
        lambda gradient, *states: [rule.update(gradient, state) for rule, state in zip(rules, states, strict=True)]
    )
    taken = []
    for gradient in gradients:
        taken.append(step(gradient, *states))
        states = [state for _, state in taken[-1]]
    return [stacked(each) for each in zip(*jax.device_get(taken), strict=True)]
