"""Norms by the names of parameters: each is the NumPy norm of the gradient at that path, before and after the clip."""

import jax
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled

PARAMS = {
    "decoder": {"layers_0": {"bias": np.zeros(3, np.float32), "kernel": np.ones((2, 3), np.float32)}},
    "head": np.ones(2, np.float32),
    "stack": np.ones((3, 2, 2), np.float32),
}
GRADIENTS = jax.tree.map(
    lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32), PARAMS
)
NORMS = {
    jax.tree_util.keystr(path, simple=True, separator="/"): float(np.linalg.norm(np.asarray(leaf, np.float64)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(GRADIENTS)
}
STACKED = {"decoder": 0, "head": 0, "stack": 1}


def first_part(path, leaf):
    del leaf
    return path.split("/")[0]


def after_a_step(transform, **options):
    def step(params, gradients):
        state = transform.update(gradients, transform.init(params), params)[1]
        return novoclip.metrics(state, params, **options)

    return jax.jit(step)(PARAMS, GRADIENTS)


def under(report, prefix):
    return {name.removeprefix(prefix): float(value) for name, value in report.items() if name.startswith(prefix)}


def close(found, expected):
    assert found == pytest.approx(expected, rel=1e-5)


def test_norms_of_tensors_stand_under_their_paths_before_and_after_the_clip():
    report = after_a_step(novoclip.clip_by_norm(1.5))
    close(under(report, "clip/norm/"), NORMS)
    close(under(report, "clip/norm_after/"), {name: min(norm, 1.5) for name, norm in NORMS.items()})
    close(under(report, "clip/limit/"), dict.fromkeys(NORMS, 1.5))


def test_a_smooth_shape_is_that_of_its_formula():
    report = after_a_step(novoclip.clip_by_norm(1.5, shape="algebraic"))
    close(under(report, "clip/norm_after/"), {name: n / (1 + (n / 1.5) ** 2) ** 0.5 for name, n in NORMS.items()})


def test_a_rule_with_one_norm_shows_it_after_the_clip_too():
    report = after_a_step(novoclip.clip_by_global_norm(0.5))
    close(
        {name: float(report[name]) for name in ("clip/norm_after", "clip/limit")},
        {"clip/norm_after": 0.5, "clip/limit": 0.5},
    )
    assert not under(report, "clip/norm/")


def test_layers_of_a_stack_are_numbered():
    per = novoclip.tensors(stacked=STACKED)
    found = under(after_a_step(novoclip.clip_by_norm(1.5, per=per), per=per), "clip/norm/")
    layers = {f"stack/{i}": float(np.linalg.norm(np.asarray(GRADIENTS["stack"][i], np.float64))) for i in range(3)}
    close(found, {name: norm for name, norm in NORMS.items() if name != "stack"} | layers)


def test_groups_stand_under_their_labels():
    per = novoclip.groups(first_part)
    found = under(after_a_step(novoclip.clip_by_norm(1.5, per=per), per=per), "clip/norm/")
    decoder = sum(norm**2 for name, norm in NORMS.items() if name.startswith("decoder")) ** 0.5
    close(found, {"decoder": decoder, "head": NORMS["head"], "stack": NORMS["stack"]})


def test_thresholds_by_name_have_the_leaves_of_each_name():
    report = after_a_step(novoclip.clip_by_norm({"decoder": 0.5, "*": 1.5}))
    decoder = {name: norm for name, norm in NORMS.items() if name.startswith("decoder")}
    close(under(report, "clip/decoder/norm/"), decoder)
    close(under(report, "clip/*/norm/"), {name: norm for name, norm in NORMS.items() if name not in decoder})


def test_names_of_a_chain_are_no_names_of_parameters():
    chain = optax.named_chain(("head", novoclip.record(per="tensor")), ("clip", novoclip.clip_by_global_norm(1.0)))
    close(under(after_a_step(chain), "clip/head/norm/"), NORMS)


def test_per_unit_it_is_the_unit_of_each_tensor_that_is_furthest_above_its_limit():
    report = after_a_step(novoclip.clip_by_norm(0.1, per=novoclip.units("flax")))
    kernel = np.asarray(GRADIENTS["decoder"]["layers_0"]["kernel"], np.float64)
    assert under(report, "clip/norm/")["decoder/layers_0/kernel"] == pytest.approx(
        np.linalg.norm(kernel, axis=0).max(), rel=1e-5
    )
    assert set(under(report, "clip/norm_after/")) == set(NORMS)


def test_a_rule_with_a_mask_has_numbers_for_names():
    rule = novoclip.clip_by_norm(1.5, mask={"decoder": False, "head": True, "stack": True})
    close(under(after_a_step(rule), "clip/norm/"), {"0": NORMS["head"], "1": NORMS["stack"]})


def test_top_keeps_the_largest_and_only_those_that_match():
    largest = sorted(NORMS, key=NORMS.get)[-2:]
    rule = compiled(novoclip.clip_by_norm(1.5))
    _, state = rule.update(GRADIENTS, rule.init(PARAMS), PARAMS)
    names = lambda **options: set(under(novoclip.metrics(state, PARAMS, **options), "clip/norm/"))  # noqa: E731
    assert names(top=2) == set(largest)
    assert names(only="*/kernel") == {"decoder/layers_0/kernel"}
    assert names(only="decoder") == {n for n in NORMS if n.startswith("decoder")}
    assert names(only="decoder", top=1) == {"decoder/layers_0/kernel"}


def test_only_need_not_match_in_every_rule():
    report = after_a_step(novoclip.clip_by_norm({"decoder": 0.5, "*": 1.5}), only="decoder")
    assert {name.rpartition("norm/")[2] for name in report if "/norm/" in name} == {n for n in NORMS if "decoder" in n}


RECORD = compiled(novoclip.record(per="tensor"))


@pytest.mark.parametrize(("bad", "share"), [(np.nan, np.nan), (np.inf, 1.0), (0.0, None)])
def test_the_share_of_the_largest_norm_says_what_is_not_finite(bad, share):
    _, state = RECORD.update(GRADIENTS | {"head": np.float32([bad, 0.0])}, RECORD.init(PARAMS), PARAMS)
    others = [norm for name, norm in NORMS.items() if name != "head"]
    expected = max(others) / sum(norm**2 for norm in others) ** 0.5 if share is None else share
    np.testing.assert_allclose(novoclip.metrics(state)["clip/norm_max_fraction"], expected, rtol=1e-5)


def test_what_is_not_finite_is_at_the_top():
    bad = GRADIENTS | {"head": np.float32([np.nan, 0.0])}
    _, state = RECORD.update(bad, RECORD.init(PARAMS), PARAMS)
    assert set(under(novoclip.metrics(state, PARAMS, top=1), "clip/norm/")) == {"head"}


def test_names_are_known_inside_jit_but_not_which_are_the_largest():
    state = jax.jit(novoclip.clip_by_norm(1.5).init)(PARAMS)
    assert "clip/norm/head" in jax.jit(lambda state: novoclip.metrics(state, PARAMS))(state)
    with pytest.raises(TypeError, match="top= needs the values"):
        jax.jit(lambda state: novoclip.metrics(state, PARAMS, top=1))(state)


def test_wrong_arguments_say_what_to_write():
    state = jax.jit(novoclip.clip_by_norm(1.5).init)(PARAMS)
    with pytest.raises(ValueError, match="give the parameters"):
        novoclip.metrics(state, top=3)
    with pytest.raises(ValueError, match="only='tail' matches no name; the names are"):
        novoclip.metrics(state, PARAMS, only="tail")
    with pytest.raises(TypeError, match="only must be a pattern"):
        novoclip.metrics(state, PARAMS, only=3)
    with pytest.raises(ValueError, match="top must be"):
        novoclip.metrics(state, PARAMS, top=0)
    with pytest.raises(ValueError, match="per must be one of"):
        novoclip.metrics(state, PARAMS, per="layer")


def test_a_state_of_an_earlier_version_has_no_norms_after_the_clip():
    rule = novoclip.clip_by_norm(1.5)
    old = jax.jit(rule.init)(PARAMS)._replace(norms_after=())
    _, state = jax.jit(rule.update)(GRADIENTS, old, PARAMS)
    assert state.norms_after == ()
    assert not any("norm_after" in name for name in novoclip.metrics(state, PARAMS))
