"""Thresholds by name, leaves that count without being scaled, and what the metrics show of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled

PARAMS = {
    "embed": {"table": np.float32([3.0, 4.0])},
    "decoder": {
        "layers_0": {"kernel": np.float32([6.0, 8.0]), "bias": np.float32([1.0])},
        "layers_1": {"kernel": np.float32([0.3, 0.4]), "bias": np.float32([2.0])},
    },
    "head": np.float32([0.0, 5.0]),
}
NORMS = {"embed/table": 5, "decoder/layers_0/kernel": 10, "decoder/layers_0/bias": 1, "decoder/layers_1/kernel": 0.5}
NORMS |= {"decoder/layers_1/bias": 2, "head": 5}


def first_step(rule, gradients):
    return jax.jit(lambda gradients: rule.update(gradients, rule.init(gradients), gradients))(gradients)


def norms_after(rule):
    updates, state = first_step(rule, PARAMS)
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    return {"/".join(key.key for key in path): float(np.linalg.norm(leaf)) for path, leaf in leaves}, state


def assert_norms(found, **changed):
    expected = NORMS | {name.replace("__", "/"): norm for name, norm in changed.items()}
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_whole_path_comes_before_the_longest_beginning_a_pattern_and_the_rest():
    table = {"embed/table": 1.0, "decoder": 2.0, "decoder/layers_1": 0.1, "*": 3.0}
    found, _ = norms_after(novoclip.clip_by_norm(table))
    assert_norms(
        found,
        embed__table=1,
        decoder__layers_0__kernel=2,
        decoder__layers_0__bias=1,
        decoder__layers_1__kernel=0.1,
        decoder__layers_1__bias=0.1,
        head=3,
    )


def test_a_pattern_and_a_threshold_of_none():
    found, _ = norms_after(novoclip.clip_by_norm({"*/bias": 0.5, "head": None, "*": 4.0}))
    assert_norms(
        found, embed__table=4, decoder__layers_0__kernel=4, decoder__layers_0__bias=0.5, decoder__layers_1__bias=0.5
    )


def test_leaves_that_no_name_matches_pass_unchanged():
    found, state = norms_after(novoclip.clip_by_norm({"embed": 0.5}))
    assert_norms(found, embed__table=0.5)
    assert list(state) == ["embed"]


def test_each_name_of_a_global_norm_has_the_norm_of_its_leaves():
    found, state = norms_after(novoclip.clip_by_global_norm({"decoder": 1.0, "*": 100.0}))
    size = np.sqrt(10**2 + 1 + 0.5**2 + 2**2)
    assert_norms(found, **{k.replace("/", "__"): v / size for k, v in NORMS.items() if k.startswith("decoder")})
    np.testing.assert_allclose(state["decoder"].norms, size, rtol=1e-6)
    figures = jax.jit(novoclip.metrics)(state)
    np.testing.assert_allclose(figures["clip/decoder/norm"], size, rtol=1e-6)
    np.testing.assert_allclose(figures["clip/*/limit"], 100.0)


def test_labels_of_groups_are_names():
    def label_of(path, _):
        return "biases" if path.endswith("bias") else path.split("/")[0]

    groups = novoclip.groups(label_of)
    found, state = norms_after(novoclip.clip_by_norm({"biases": 1.0, "head": 0.5, "*": 50.0}, per=groups))
    size = np.sqrt(1 + 4)
    assert_norms(found, decoder__layers_0__bias=1 / size, decoder__layers_1__bias=2 / size, head=0.5)
    assert set(state) == {"biases", "head", "*"}
    with pytest.raises(ValueError, match=r"max_norm has a name that matches nothing: 'bias'; the leaves are "):
        novoclip.clip_by_norm({"bias": 1.0}, per=groups).init(PARAMS)


def test_thresholds_by_name_may_be_schedules_and_other_rules_take_them():
    rule = compiled(novoclip.clip_by_norm({"head": lambda step: 1.0 + step, "*": 100.0}))
    state = rule.init(PARAMS)
    for expected in (1.0, 2.0):
        updates, state = rule.update(PARAMS, state)
        np.testing.assert_allclose(np.linalg.norm(updates["head"]), expected, rtol=1e-6)
    found, _ = norms_after(novoclip.clip_by_value({"head": 0.1, "*": 100.0}))
    assert_norms(found, head=0.1)
    found, _ = norms_after(novoclip.agc({"head": 0.2, "decoder": None}, per="tensor"))
    assert_norms(found, head=1)
    found, _ = norms_after(novoclip.clip_by_block_rms({"embed": 1.0}))
    assert_norms(found, embed__table=np.sqrt(2))


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({}, ValueError, "max_norm must not be an empty mapping"),
        (
            {"embedding": 1.0, "*": 2.0},
            ValueError,
            "has a name that matches nothing: 'embedding'; the leaves are 'embed/table'",
        ),
        ({"decoder/layers": 1.0}, ValueError, "has a name that matches nothing: 'decoder/layers'"),
        ({"decoder": {"layers_0": 1.0}}, TypeError, "max_norm must be flat: write 'decoder/layers_0' as one name"),
        ({3: 1.0}, TypeError, "must have strings as names; got 3"),
        (
            {"*/bias": 1.0, "decoder*": 2.0},
            ValueError,
            r"two patterns that match 'decoder/layers_0/bias': '\*/bias' and",
        ),
        ({"head": -1.0}, ValueError, "max_norm must be a number"),
    ],
)
def test_names_that_match_nothing_or_twice_are_refused(table, error, message):
    with pytest.raises(error, match=message):
        novoclip.clip_by_norm(table).init(PARAMS)


def test_a_state_of_other_names_or_of_one_threshold_is_refused():
    rule = novoclip.clip_by_norm({"embed": 1.0, "*": 2.0})
    for other in ({"head": 1.0, "*": 2.0}, 1.0):
        state = jax.jit(novoclip.clip_by_norm(other).init)(PARAMS)
        with pytest.raises(ValueError, match=r"the state does not fit max_norm: .*\['embed', '\*'\] is expected"):
            rule.update(PARAMS, state, PARAMS)


def test_a_name_may_be_of_a_leaf_that_a_partition_hides():
    rule = novoclip.clip_by_norm({"embed": 0.1, "head": 1.0})
    parts = compiled(optax.partition({"x": rule, "y": rule}, {"embed": "x", "decoder": "y", "head": "y"}))
    updates, _ = parts.update(PARAMS, parts.init(PARAMS))
    np.testing.assert_allclose(np.linalg.norm(updates["embed"]["table"]), 0.1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(updates["head"]), 1.0, rtol=1e-6)


def test_a_name_whose_gradient_is_missing_in_a_step_passes():
    rule = compiled(novoclip.clip_by_global_norm({"head": 0.1, "embed": 1.0}))
    updates, _ = rule.update(PARAMS | {"head": None}, rule.init(PARAMS))
    assert updates["head"] is None
    np.testing.assert_allclose(np.linalg.norm(updates["embed"]["table"]), 1.0, rtol=1e-6)


def test_a_group_may_count_in_the_norm_without_being_scaled_or_neither():
    counted = {"embed": False, "decoder": True, "head": True}
    found, state = norms_after(novoclip.clip_by_global_norm(1.0, scale_mask=counted))
    size = np.sqrt(sum(norm**2 for norm in NORMS.values()))
    assert_norms(found, **{k.replace("/", "__"): v / size for k, v in NORMS.items() if not k.startswith("embed")})
    np.testing.assert_allclose(state.norms, size, rtol=1e-6)
    found, state = norms_after(novoclip.clip_by_global_norm(1.0, mask=counted))
    size = np.sqrt(sum(norm**2 for name, norm in NORMS.items() if not name.startswith("embed")))
    assert_norms(found, **{k.replace("/", "__"): v / size for k, v in NORMS.items() if not k.startswith("embed")})
    np.testing.assert_allclose(state.norms, size, rtol=1e-6)
    with pytest.raises(ValueError, match="scale_mask selects no leaf"):
        novoclip.clip_by_global_norm(1.0, scale_mask=False).init(PARAMS)


def test_steps_by_name_are_those_of_a_partition_over_a_scan():
    table = {"embed": 0.1, "decoder": 2.0, "head": 0.3}
    ours = novoclip.clip_by_global_norm(table)
    theirs = optax.partition(
        {name: novoclip.clip_by_global_norm(limit) for name, limit in table.items()}, {name: name for name in table}
    )

    def run(rule):
        def step(state, scale):
            updates, state = rule.update(jax.tree.map(lambda x: scale * x, PARAMS), state)
            return state, updates

        return jax.jit(lambda: jax.lax.scan(step, rule.init(PARAMS), jnp.arange(4.0))[1])()

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run(ours), run(theirs))


def test_metrics_show_a_tensor_that_dominates_the_norm():
    """With Adam, a global clip that one tensor decides makes the steps of the others small: per tensor it does not."""
    gradients = {"large": np.full(64, 1e11, np.float32), "small": np.ones(64, np.float32)}
    sizes = {}
    for per in ("tree", "tensor"):
        parts = novoclip.record(per="tensor"), novoclip.clip_by_norm(1.0, per=per), optax.scale_by_adam()
        updates, state = first_step(optax.chain(*parts), gradients)
        sizes[per] = float(np.linalg.norm(updates["small"]))
        assert jax.jit(novoclip.metrics)(state)["clip/norm_max_fraction"] == pytest.approx(1.0)
    assert sizes["tensor"] == pytest.approx(8.0, rel=1e-3)
    assert sizes["tree"] < 0.1
