"""The faults that benchmarks/planted.py plants: plausible mistakes, each a short text and what stands there instead."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A mistake in the library.

    Attributes:
      name: what is wrong.
      file: where.
      old: a text that is there exactly once.
      new: the mistake.
      hints: arguments of pytest that are likely to find it, tried in turn before the rest of the suite.
    """

    name: str
    file: str
    old: str
    new: str
    hints: tuple[str, ...]


def only(file: str, words: str) -> str:
    return f"{file} -k '{words}'"


def contract(words: str) -> str:
    return only("tests/test_contract.py", words)


RULES = "tests/test_rules.py"
MORE = "tests/test_more_rules.py"
MESHES = "tests/test_meshes.py"
DESCENT = "tests/test_optimizers.py"
WRAPPERS = "tests/test_wrappers.py"
GUARDS = "tests/test_guards.py"
STATE = "tests/test_state.py"

FAULTS = (
    # Shapes, limits, clipping.
    Fault(
        "drop clips instead of dropping",
        "novoclip/shapes.py",
        "jnp.where(norm > limit, 0, norm)",
        "jnp.where(norm > limit, limit, norm)",
        (
            only(RULES, "shapes"),
            RULES,
        ),
    ),
    Fault(
        "arctan without its factor",
        "novoclip/shapes.py",
        "(2 / jnp.pi) * jnp.arctan(",
        "jnp.arctan(",
        (
            only(RULES, "shapes"),
            RULES,
        ),
    ),
    Fault(
        "the larger of two limits holds",
        "novoclip/limits/tighter.py",
        "functools.reduce(jnp.minimum,",
        "functools.reduce(jnp.maximum,",
        (
            only(MORE, "tighter"),
            MORE,
        ),
    ),
    Fault(
        "NaN is let through",
        "novoclip/clipping.py",
        "jnp.where(known & jnp.isfinite(new), new, 0)",
        "jnp.where(known & jnp.isfinite(new), new, norm)",
        (STATE, contract("clip_by_norm")),
    ),
    Fault(
        "the counter of bad steps stands still",
        "novoclip/clip_state.py",
        "~all_true(finite), norms.size",
        "~jnp.any(finite), norms.size",
        (STATE, contract("clip_by_norm or autoclip")),
    ),
    # Norms and blocks.
    Fault(
        "norms of 16 bits without upcast",
        "novoclip/blocks.py",
        "jnp.square(leaf.astype(dtype) * scale)",
        "jnp.square(leaf * scale.astype(leaf.dtype)).astype(dtype)",
        (contract("clip_by_norm"),),
    ),
    Fault(
        "the imaginary part does not count",
        "novoclip/blocks.py",
        "_square(leaf.real, scale, dtype) + _square(leaf.imag, scale, dtype)",
        "_square(leaf.real, scale, dtype)",
        (contract("clip_by_norm"),),
    ),
    Fault(
        "rms divides outside of the root",
        "novoclip/blocks.py",
        "square_root(total / size) / scale",
        "square_root(total) / size / scale",
        (
            only(RULES, "norm_is"),
            RULES,
        ),
    ),
    Fault(
        "signs are lost per element",
        "novoclip/elements.py",
        "jnp.copysign(held, leaf.astype(after.dtype)).astype(leaf.dtype)",
        "held.astype(leaf.dtype)",
        (
            only(RULES, "clip_by_value"),
            RULES,
        ),
    ),
    Fault(
        "units over the wrong axis",
        "novoclip/axes.py",
        'getattr(path, "outputs_first", False)',
        'not getattr(path, "outputs_first", False)',
        (only(RULES, "clip_by_norm_is"), RULES, MORE),
    ),
    Fault(
        "the axes of stacked layers are not moved",
        "novoclip/stacks.py",
        "tuple(axis + layers for axis in",
        "tuple(axis for axis in",
        ("tests/test_stacks.py",),
    ),
    Fault(
        "16 bits overflow to infinity",
        "novoclip/leaves.py",
        "jnp.where(jnp.isinf(leaf), leaf, jnp.clip(leaf, -largest, largest))",
        "leaf",
        (only(DESCENT, "float16"), DESCENT, WRAPPERS),
    ),
    Fault(
        "one finite leaf is enough",
        "novoclip/optimizers/algorithm.py",
        "skipped = ~all_true(~bad)",
        "skipped = all_true(bad)",
        (DESCENT, contract("adam")),
    ),
    Fault(
        "a root of NaN is 0",
        "novoclip/safe_math.py",
        "empty = total == 0  #",
        "empty = ~(total > 0)  #",
        (STATE, contract("clip_by_norm or autoclip")),
    ),
    # Meshes.
    Fault(
        "sums over devices are maxima",
        "novoclip/mesh.py",
        "collective = lax.pmax if combine is not jnp.sum else lax.psum",
        "collective = lax.pmax",
        (
            only(MESHES, "norms_are or clip_by_norm"),
            MESHES,
        ),
    ),
    Fault(
        "no sum over devices for units",
        "novoclip/mesh.py",
        "part = (lax.psum if combine is jnp.sum else lax.pmax)(part, reduced)",
        "part = part",
        (
            only(MESHES, "norms_are"),
            MESHES,
        ),
    ),
    Fault(
        "shards that shard_map has recorded are summed twice",
        "novoclip/wrappers/shards.py",
        "tuple(filter(_unrecorded, names))",
        "tuple(names)",
        (
            only(MESHES, "record"),
            MESHES,
        ),
    ),
    # Rules.
    Fault(
        "a history that never wraps around",
        "novoclip/limits/history.py",
        "(state.slot + 1) % window",
        "state.slot + 1",
        (
            only(RULES, "autoclip"),
            RULES,
        ),
    ),
    Fault(
        "percentiles of one entry too many",
        "novoclip/limits/history.py",
        "percentile / 100 * jnp.maximum(filled - 1, 0)",
        "percentile / 100 * filled",
        (
            only(RULES, "autoclip"),
            RULES,
        ),
    ),
    Fault(
        "the running mean learns spikes",
        "novoclip/limits/running_mean.py",
        "rate * (jnp.minimum(norms, limits) - state.mean)",
        "rate * (norms - state.mean)",
        (
            only(MORE, "memories"),
            MORE,
        ),
    ),
    Fault(
        "the running quantile moves the wrong way",
        "novoclip/limits/running_quantile.py",
        "moved = estimate - value_at(rate,",
        "moved = estimate + value_at(rate,",
        (
            only(MORE, "memories"),
            MORE,
        ),
    ),
    Fault(
        "zclip begins one step early",
        "novoclip/limits/zclip.py",
        "warm = state.seen >= warmup\n",
        "warm = state.seen >= warmup - 1\n",
        (only(RULES, "zclip"), RULES, MORE),
    ),
    Fault(
        "zclip forgets its fixed limit",
        "novoclip/limits/zclip.py",
        'limits = jnp.minimum(bound, value_at(max_norm, step, norms, "max_norm"))',
        "limits = bound",
        (only(MORE, "zclip"), RULES, MORE),
    ),
    Fault(
        "deviations begin one step late",
        "novoclip/limits/deviation.py",
        "filled >= least_filled",
        "filled > least_filled",
        (
            only(MORE, "deviations"),
            MORE,
        ),
    ),
    Fault(
        "agc without its floor",
        "novoclip/limits/agc.py",
        'jnp.maximum(param_norms.astype(norms.dtype), value_at(eps, step, norms, "eps"))',
        "param_norms.astype(norms.dtype)",
        (
            only(MORE, "weights"),
            MORE,
        ),
    ),
    Fault(
        "adagc's warm-up keeps the last norm instead of the least",
        "novoclip/rules/adagc.py",
        "jnp.minimum(state.gamma, let_through)",
        "let_through",
        (
            only(MORE, "adagc"),
            MORE,
        ),
    ),
    Fault(
        "a trust ratio freezes weights of zero",
        "novoclip/limits/trust_ratio.py",
        "usable = (sizes > 0) & (by > 0)",
        "usable = by > 0",
        (
            only(MORE, "trust_ratio"),
            MORE,
        ),
    ),
    Fault(
        "means that are centralized are too small",
        "novoclip/rules/centralize.py",
        "by = (number * axis_size(along) * one).astype(wide.dtype)",
        "by = (wide.size * axis_size(along) * one).astype(wide.dtype)",
        (
            only(MORE, "centralize"),
            MORE,
        ),
    ),
    # Optimizers.
    Fault(
        "optimizers climb",
        "novoclip/optimizers/selection.py",
        "-by.astype(u.dtype) * u",
        "by.astype(u.dtype) * u",
        (
            only(DESCENT, "follow_schedules"),
            DESCENT,
        ),
    ),
    Fault(
        "weight decay is applied twice",
        "novoclip/optimizers/algorithm.py",
        'if weight_decay_mode == "coupled":',
        "if weight_decay_mode in DECAY_MODES:",
        (
            only(DESCENT, "follow_schedules"),
            DESCENT,
        ),
    ),
    Fault(
        "the mask of weight decay is lost",
        "novoclip/optimizers/step.py",
        "part if on else blank(part)",
        "part",
        (
            only(DESCENT, "mask or follow_schedules"),
            DESCENT,
        ),
    ),
    Fault(
        "an optimizer learns from steps that are not finite",
        "novoclip/optimizers/algorithm.py",
        "moments = choose(fitting(lambda: algorithm.learn(gradients, before, step)), before)",
        "moments = fitting(lambda: algorithm.learn(gradients, before, step))",
        (contract("adam"), DESCENT),
    ),
    Fault(
        "a skipped step moves the state of clip=",
        "novoclip/optimizers/algorithm.py",
        "clip=choose(clip_state, state.clip)",
        "clip=clip_state",
        (DESCENT, contract("sgd")),
    ),
    Fault(
        "Adam's second moment keeps its bias",
        "novoclip/optimizers/adam.py",
        "by = jnp.sqrt(second)",
        "by = jnp.ones_like(second)",
        (
            only(DESCENT, "formulas"),
            DESCENT,
        ),
    ),
    Fault(
        "Adam's eps inside the root",
        "novoclip/optimizers/adam.py",
        "eps = eps._replace(value=by * eps.value)",
        "eps, eps_root = eps._replace(value=0 * eps.value), second * eps.value",
        (
            only(DESCENT, "formulas"),
            DESCENT,
        ),
    ),
    Fault(
        "second moments of signed numbers",
        "novoclip/optimizers/moments.py",
        "taken * jnp.abs(fitting(new, root))",
        "taken * fitting(new, root)",
        (
            only(DESCENT, "formulas"),
            DESCENT,
        ),
    ),
    Fault(
        "AMSGrad forgets its maximum",
        "novoclip/optimizers/amsgrad.py",
        "jnp.maximum(top, root / by)",
        "root / by",
        (
            only(DESCENT, "formulas"),
            DESCENT,
        ),
    ),
    Fault(
        "NovoGrad begins at 0",
        "novoclip/optimizers/novograd_algorithm.py",
        "lambda old, new, norm: jnp.where(old > 0, new, norm), state.root",
        "lambda old, new, norm: new, state.root",
        (
            only(DESCENT, "novograd"),
            DESCENT,
        ),
    ),
    Fault(
        "SPAM begins anew one step late",
        "novoclip/optimizers/spam.py",
        "jnp.where(since == 0,",
        "jnp.where(since == 1,",
        ("tests/test_published.py", DESCENT),
    ),
    Fault(
        "ADOPT's first gradient already moves",
        "novoclip/optimizers/adopt.py",
        "most = jnp.where(first, 0,",
        "most = jnp.where(first, 1,",
        ("tests/test_published.py", DESCENT),
    ),
    Fault(
        "ACClip without its outer root",
        "novoclip/optimizers/acclip.py",
        "power(total, 1 / exponent)",
        "total",
        ("tests/test_published.py", DESCENT),
    ),
    Fault(
        "proportional thresholds clip after the moments",
        "novoclip/optimizers/thresholds.py",
        "sizes = block_sizes(blocks, proportional(gradients, again, blocks, k))",
        "sizes = block_sizes(blocks, gradients)",
        (
            only(DESCENT, "formulas"),
            DESCENT,
        ),
    ),
    # Guards.
    Fault(
        "the guard lets NaN of one leaf through",
        "novoclip/guards/nonfinite.py",
        "any_bad = ~all_true(~bad)",
        "any_bad = all_true(bad)",
        (GUARDS,),
    ),
    Fault(
        "the guard tells the step before",
        "novoclip/counting.py",
        "jnp.where(bad, steps, leaf_last)",
        "jnp.where(bad, steps - 1, leaf_last)",
        (GUARDS,),
    ),
    Fault(
        "spikes are learned although they are skipped",
        "novoclip/guards/spikes.py",
        'if learn == "all" else taken',
        "if learn in LEARN else taken",
        (GUARDS,),
    ),
    Fault(
        "one step too many in a row is skipped",
        "novoclip/guards/spikes.py",
        "state.spikes_in_a_row >= max_in_a_row",
        "state.spikes_in_a_row > max_in_a_row",
        (GUARDS,),
    ),
    # Wrappers and telemetry.
    Fault(
        "clipped portions are carried with the wrong sign",
        "novoclip/wrappers/carry.py",
        "_difference, total, sent)",
        "_difference, sent, total)",
        (
            only(WRAPPERS, "uclip"),
            WRAPPERS,
        ),
    ),
    Fault(
        "workers add up instead of averaging",
        "novoclip/wrappers/carry.py",
        "jax.lax.pmean(estimate, axis_name)",
        "jax.lax.psum(estimate, axis_name)",
        (
            only(WRAPPERS, "clip21"),
            WRAPPERS,
        ),
    ),
    Fault(
        "a delayed start comes one step late",
        "novoclip/wrappers/delay.py",
        "min(steps, jnp.iinfo(jnp.int32).max) + 1",
        "min(steps, jnp.iinfo(jnp.int32).max)",
        (
            only(WRAPPERS, "start"),
            WRAPPERS,
        ),
    ),
    Fault(
        "examples are added up instead of averaged",
        "novoclip/wrappers/examples.py",
        "jnp.sum(wide / by, axis=0)",
        "jnp.sum(wide, axis=0)",
        (
            only(WRAPPERS, "examples"),
            WRAPPERS,
        ),
    ),
    Fault(
        "reported means are sums",
        "novoclip/telemetry.py",
        "jnp.sum(value) / max(value.size, 1)",
        "jnp.sum(value)",
        ("tests/test_metrics.py", "--doctest-modules novoclip/telemetry.py", "tests/test_contract.py -k autoclip"),
    ),
    Fault(
        "rows beyond a block of blocks are lost",
        "novoclip/platforms.py",
        "min(number, max(ROW, blocks))",
        "min(number, ROW)",
        ("tests/test_platforms.py -k 'blocks'",),
    ),
    Fault(
        "leaves of one shape share the scale of norms",
        "novoclip/blocks.py",
        "zip(leaves, one_each([scale] * len(leaves), leaves), stacks, strict=True)",
        "zip(leaves, [scale] * len(leaves), stacks, strict=True)",
        ("tests/test_compile_counts.py -k 'written_out'",),
    ),
    Fault(
        "a root that underflowed clips to 0",
        "novoclip/optimizers/thresholds.py",
        "some = (weight > 0) & (root > 0)",
        "some = weight > 0",
        (only(DESCENT, "underflowed"),),
    ),
    Fault(
        "the state of elements overwrites what limits need",
        "novoclip/learning.py",
        "            kept = _in_turn(limits, kept, state)",
        "            pass",
        ("tests/test_norms.py -k 'one_copy'",),
    ),
    Fault(
        "a spoilt slice is not counted",
        "novoclip/furthest.py",
        "~all_true(jnp.isfinite(norm) & ~jnp.isnan(limit))",
        "~all_true(~jnp.isnan(limit))",
        ("tests/test_units.py", "tests/test_state.py"),
    ),
)
