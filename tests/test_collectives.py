"""How often devices send to each other in a step over sharded arrays, whatever the size of what they send."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import optax
import pytest

from tests.cases import FIRST, SEVERAL

SPECS = {"rows": P("model", None), "columns": P(None, "model"), "both": P("data", "model")}
SHAPES = ((8, 16), (16, 32), (24, 8), (16, 16), (8, 16), (16, 32), (32, 8), (48, 16))
KINDS = "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|ragged-all-to-all|reduce-scatter"

# Sums over the devices along one mesh axis, where leaves are split along one: as many as Optax's rule of the same kind
# sends, or as this many norms and means need. Where they are split along two, each is sent along both.
ONE = {"all-reduce": 1}
SUMS = {
    "clip_by_value": {},
    "clip_by_second_moment": {},
    "clip_to_band": {},
    "adaclip": {"all-reduce": 2},  # a maximum, and a sum that sees NaN
    "centralize": {"all-reduce": 2},  # the means, and the norm that is shown
    "clip_by_trust_ratio": {"all-reduce": 2},  # norms of the gradients and of the parameters
    "clippy": {"all-reduce": 5},  # two maxima with their sums, and the root mean squares of the parameters
    "uclip": {"all-reduce": 2},  # the norm, and whether what is carried is finite
    "clip21": {"all-reduce": 2},
    "guard_nonfinite": {"all-reduce": 2},  # whether gradients are finite, and whether updates and state are
    "skip_spikes": {"all-reduce": 3},  # likewise, and the norm
    "sgd": {"all-reduce": 2},  # whether gradients are finite, and the norm for clip=
    "novograd": {"all-reduce": 2},  # likewise the norms that it divides by
    "nsgd": {"all-reduce": 2},
    "stable_adamw": {"all-reduce": 2},
    "clip_by_spectral_norm": {"all-reduce": 2, "all-gather": 2 * len(SHAPES)},  # a decomposition needs whole matrices
}
# Split along columns, a unit is whole on one device: only what is shown of them is sent, a maximum and sums; and on a
# CPU, whose loops have conditions, whether the sums of the gradients and of the parameters were in range.
OF_UNITS = {"rows": 2, "columns": 4, "both": 6}


def collectives(transform, spec, shapes=SHAPES):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, spec)
    params = {f"leaf_{i}": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for i, shape in enumerate(shapes)}
    state = jax.eval_shape(transform.init, params)
    step = jax.jit(transform.update).lower(params, state, params).compile()
    kinds = re.findall(rf"= .*? ({KINDS})(?:-start)?\(", step.as_text())
    return {kind: kinds.count(kind) for kind in kinds}


def expected(name, split):
    if name == "agc":
        return {"all-reduce": OF_UNITS[split]}
    each = SUMS.get(name, ONE)
    return {kind: number * (2 if split == "both" else 1) for kind, number in each.items()}


# Some split along both axes, fewer along one; the others with -m full.
ALONG_ONE = ("agc", "centralize", "clip_by_norm")
CASES = [
    pytest.param(case, split, id=f"{case.name}-{split}", marks=() if often else pytest.mark.full)
    for case in FIRST
    if case.entry.place not in ("examples", "shards")
    for split in SPECS
    for often in [(split == "both" and case.entry.name in (*SUMS, *SEVERAL)) or case.entry.name in ALONG_ONE]
]


@pytest.mark.parametrize(("case", "split"), CASES)
def test_steps_over_sharded_arrays_send_a_few_sums(case, split):
    found = collectives(case.transform(), SPECS[split])
    for kind, number in found.items():
        assert number <= expected(case.entry.name, split).get(kind, 0), found


@pytest.mark.parametrize("split", SPECS)
def test_on_an_accelerator_agc_sends_what_optaxs_sends_and_two_more(split, monkeypatch):
    theirs = collectives(optax.adaptive_grad_clip(0.01), SPECS[split])
    # As there: no loop, and so no condition.
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, default, **_: default(*arguments))
    (agc,) = (case for case in FIRST if case.entry.name == "agc")
    jax.clear_caches()
    found = collectives(agc.transform(), SPECS[split])
    jax.clear_caches()
    assert set(found) <= {"all-reduce"}
    assert found["all-reduce"] <= theirs.get("all-reduce", 0) + (4 if split == "both" else 2), (found, theirs)
