"""What makes a step slow to compile, counted: operations that XLA gets, and kernels that it compiles one by one.

The steps are those of `python benchmarks/compile.py`, which measures seconds.
"""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import compile as steps
from tests.cases import FIRST, SEVERAL, sampled

LEAVES = 40  # three blocks of GPT-2
# StableHLO operations beside Optax's, and kernels that are not alike: a little above what jax 0.10.2 and 0.12 give.
MOST = {
    "clip_by_global_norm + optax.adam": (1.03, 58),
    "clip_by_norm per tensor + optax.adam": (1.2, 62),
    "autoclip per tensor + optax.adam": (1.27, 69),
    "zclip per tensor + optax.adam": (1.28, 73),
    "adagc + optax.adam": (1.3, 69),
    "agc + optax.adam": (1.36, 136),
    "adam": (0.76, 54),
    "adam(clip=clip_by_global_norm)": (0.84, 84),
    "novograd": (0.9, 65),
    "skip_spikes(optax.adam)": (1.32, 83),
    "guard_nonfinite(optax.adam)": (0.98, 53),
}


def test_every_step_of_the_table_is_counted():
    assert set(MOST) == set(steps.PAIRS)


SOME = ("clip_by_norm per tensor + optax.adam", "adam", "guard_nonfinite(optax.adam)")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in SOME else pytest.mark.full) for name in MOST])
def test_a_step_has_few_operations_and_few_kernels_that_differ(name):
    ours, theirs = (
        step.lower(*arguments) for step, arguments in (steps.prepared(make(), LEAVES) for make in steps.PAIRS[name])
    )
    share, kernels = MOST[name]
    assert steps.operations(ours) <= share * steps.operations(theirs)
    assert steps.fusions(ours.compile()) <= kernels


SHAPE = (192, 320)


@pytest.mark.parametrize("case", sampled(FIRST, SEVERAL))
def test_no_scalar_is_written_out_as_large_as_a_leaf(case):
    """XLA's CPU backend does so with a scalar that leaves of one shape share, and reads it once more for each."""
    rule = case.transform()
    params = {str(i): jax.ShapeDtypeStruct(SHAPE, jnp.float32) for i in range(3)}
    arguments = (params, jax.eval_shape(rule.init, params), params)
    compiled = jax.jit(lambda params, state, updates: rule.update(updates, state, params)).lower(*arguments).compile()
    assert not from_scalars(compiled.as_text(), least=SHAPE[0] * SHAPE[1])


def from_scalars(text, least):
    """Names of kernels, other than those inside of others, that write an array of that size and read none."""
    made = re.findall(r"^  (?:ROOT )?%(\S+) = \w+\[([\d,]*)\]\S* ([\w-]+)\((.*?)\)(?:,|$)", text, re.MULTILINE)
    sizes = {name: math.prod(int(size) for size in shape.split(",") if size) for name, shape, _, _ in made}
    inside = {
        name
        for body in re.findall(r"^%\S*(?:fused|wrapped)\S* .*?^\}", text, re.MULTILINE | re.DOTALL)
        for name in re.findall(r"^  (?:ROOT )?%(\S+) =", body, re.MULTILINE)
    }
    return [
        name
        for name, _, kind, operands in made
        if kind in ("fusion", "broadcast")
        and name not in inside
        and sizes[name] >= least
        and all(sizes.get(operand, 0) < least for operand in re.findall(r"%([\w.-]+)", operands))
    ]
