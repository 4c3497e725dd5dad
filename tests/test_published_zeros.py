"""With `learn_zeros`, rules equal the authors' code on gradients of which some are 0.

Each loop is that code, written again in NumPy:
AutoClip: https://github.com/pseeth/autoclip, autoclip.py.
AdaGC: https://github.com/lishuai-97/AdaGC at c9c23db0a53d22542aebb152b9f46c1bdfd67fb1, class AdaGC of
megatron-gpt2.patch.
Stable-SPAM: https://github.com/TianjinYellow/StableSPAM at 6a66da1ea7005f7fe7bc570b7968144b42163bed,
galore_torch/stablespam.py.
SPAM: https://github.com/TianjinYellow/SPAM-Optimizer at e8185fbe695fdc449953b4a1f96121df5bf0d268, galore_torch/SPAM.py.
"""

import jax
import numpy as np
import optax
import pytest

import novoclip
from novoclip import limits

pytestmark = pytest.mark.usefixtures("x64")

SHAPES = {"bias": (3,), "kernel": (4, 3), "rare": (2, 2)}
PARAMS = {name: np.zeros(shape) for name, shape in SHAPES.items()}


def with_zeros(steps=60, seed=0):
    """Gradients of which one leaf is mostly 0, the first, and some later ones, are 0 as a whole; with spikes."""
    generator = np.random.default_rng(seed)
    gradients = [{name: generator.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(steps)]
    for step, gradient in enumerate(gradients):
        if step % 7:
            gradient["rare"] = np.zeros_like(gradient["rare"])
        gradient["kernel"][0] *= step > 25
        if step in (0, 9, 10, 33):
            gradients[step] = {name: np.zeros_like(leaf) for name, leaf in gradient.items()}
    for step in (14, 41):
        gradients[step] = {name: 1000 * leaf for name, leaf in gradients[step].items()}
    return gradients


GRADIENTS = with_zeros()


def length(leaves):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves))


def run(transform):
    update, state = jax.jit(transform.update), transform.init(PARAMS)
    for gradient in GRADIENTS:
        updates, state = update(gradient, state, PARAMS)
        yield updates


def largest_difference(transform, expected):
    """The largest difference of a leaf, relative to the largest element so far, less a tenth per step since."""
    found, largest = 0.0, dict.fromkeys(SHAPES, 1e-300)
    for updates, wanted in zip(run(transform), expected, strict=True):
        for name, leaf in wanted.items():
            largest[name] = max(0.9 * largest[name], np.max(np.abs(leaf)))
            found = max(found, np.max(np.abs(updates[name] - leaf)) / largest[name])
    return found


def autoclip(percentile=10):
    """Clips by `torch.nn.utils.clip_grad_norm_`. Its 1e-6 in the divisor, which we omit, is undone."""
    history = []
    for gradient in GRADIENTS:
        norm = length(gradient.values())
        history.append(norm)
        coefficient = min(1.0, np.percentile(history, percentile) / (norm + 1e-6))
        if norm > 0 and coefficient < 1:
            coefficient *= (norm + 1e-6) / norm
        yield {name: coefficient * leaf for name, leaf in gradient.items()}


def adagc(clip_ratio=1.04, beta=0.99, start_clip_steps=20, max_norm=1.0, eps=0.0):
    """Here eps, 1e-6 there, is 0: it also enters the norms that are learned."""
    state = {}
    for step, given in enumerate(GRADIENTS, start=1):
        total, gradient = length(given.values()), dict(given)
        if step <= start_clip_steps:
            coefficient = max_norm / (total + eps) if total > 0 else 1.0
            for name, leaf in given.items():
                gradient[name] = leaf * min(coefficient, 1.0)
                norm = length([gradient[name]])
                state[name] = min(norm, state.get(name, norm))
        else:
            for name, leaf in given.items():
                norm, average = length([leaf]), state[name]
                if norm > clip_ratio * average:
                    gradient[name] = leaf * (clip_ratio * average / (norm + eps))
                    norm = clip_ratio * average
                state[name] = average * beta + norm * (1 - beta)
        yield gradient


def stable_spam(lr=None, gamma1=0.7, gamma2=0.9, theta=0.999, betas=(0.9, 0.999), eps=1e-8, adagn=True):
    """With a learning rate the steps of the optimizer, without one the gradients after AdaClip and AdaGN."""
    m_max, m_norm, v_norm = (dict.fromkeys(SHAPES, 0.0) for _ in range(3))
    m, v = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for step, gradient in enumerate(GRADIENTS, start=1):
        result = {}
        for name, leaf in gradient.items():
            grad, largest = leaf.copy(), np.max(np.abs(leaf))
            m_max[name] = theta * m_max[name] + (1 - theta) * largest
            m_max_hat = m_max[name] / (1 - theta**step)
            mask = np.abs(grad) > m_max_hat
            if np.any(mask):
                grad[mask] = grad[mask] / largest * m_max_hat
            norm = length([grad])
            m_norm[name] = gamma1 * m_norm[name] + (1 - gamma1) * norm
            v_norm[name] = gamma2 * v_norm[name] + (1 - gamma2) * norm**2
            m_hat, v_hat = m_norm[name] / (1 - gamma1**step), v_norm[name] / (1 - gamma2**step)
            if norm > 0 and adagn:
                grad = grad / norm * (m_hat / (np.sqrt(v_hat) + eps))
            if lr is not None:
                m[name] = betas[0] * m[name] + (1 - betas[0]) * grad
                v[name] = betas[1] * v[name] + (1 - betas[1]) * grad**2
                denominator = np.sqrt(v[name]) / np.sqrt(1 - betas[1] ** step) + eps
                grad = -lr / (1 - betas[0] ** step) * m[name] / denominator
            result[name] = grad
        yield result


def spam(lr=1.0, betas=(0.9, 0.999), eps=1e-6, threshold=20.0, delta_t=30, grad_accu_steps=5, warmup=4):
    m, v = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    current = warmup + 1
    for step, gradient in enumerate(GRADIENTS, start=1):
        scale, result = 1 - (0.99 * (1 + np.cos(np.pi * current / (warmup + 1))) / 2 if current < warmup else 0), {}
        for name, leaf in gradient.items():
            grad = leaf.copy()
            if step % delta_t == 0:
                m[name], v[name] = np.zeros_like(grad), np.zeros_like(grad)
            if step >= grad_accu_steps and step % delta_t >= grad_accu_steps:
                mask = grad**2 > threshold * v[name]
                grad[mask] = np.sign(grad[mask]) * np.sqrt(v[name][mask] * threshold)
            m[name] = betas[0] * m[name] + (1 - betas[0]) * grad
            v[name] = betas[1] * v[name] + (1 - betas[1]) * grad**2
            step_size = lr * np.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
            result[name] = -step_size * scale * m[name] / (np.sqrt(v[name]) + eps)
        current = 0 if (step + 1) % delta_t == 0 else current + 1
        yield result


def stable_spam_of_ours(learn_zeros, *rest):
    clips = novoclip.adaclip(learn_zeros=learn_zeros), novoclip.adagn(learn_zeros=learn_zeros)
    return optax.chain(*clips, *rest)


CASES = {
    "autoclip": (lambda on: novoclip.autoclip(10.0, window=60, learn_zeros=on), autoclip),
    "adagc": (
        lambda on: novoclip.adagc(1.04, lambda_abs=1.0, decay=0.99, warmup=20, learn_zeros=on),
        adagc,
    ),
    "adaclip": (lambda on: novoclip.adaclip(learn_zeros=on), lambda: stable_spam(adagn=False)),
    "adagn": (stable_spam_of_ours, stable_spam),
    "stable_spam": (lambda on: stable_spam_of_ours(on, novoclip.adam(1.0)), lambda: stable_spam(lr=1.0)),
    "spam": (
        lambda on: novoclip.spam(1.0, threshold=20.0, reset_every=30, delay=5, warmup=4, learn_zeros=on),
        spam,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_with_learn_zeros_a_rule_is_the_authors(name):
    ours, published = CASES[name]
    assert largest_difference(ours(True), published()) < 1e-12


@pytest.mark.parametrize("name", ["autoclip", "adagc", "adaclip", "spam"])
def test_without_it_zeros_are_ignored(name):
    ours, published = CASES[name]
    assert largest_difference(ours(False), published()) > 0.01


def test_packaged_adagc_has_a_warmup_that_is_one_step_shorter():
    # pytorch_optimizer 4.1.0: `if group['step'] < group['warmup_steps']`, with the same learning of zeros.
    rule = novoclip.adagc(1.05, lambda_abs=1.0, warmup=19, learn_zeros=True)
    assert largest_difference(rule, adagc(1.05, 0.98, start_clip_steps=20 - 1)) < 1e-12
    assert largest_difference(rule, adagc(1.05, 0.98, start_clip_steps=20)) > 1e-3


def test_an_infinite_norm_is_no_zero_that_is_learned():
    rule = novoclip.adagc(2.0, warmup=1, learn_zeros=True)
    update, state = jax.jit(rule.update), rule.init({"w": np.zeros(2)})
    for gradient in ([3.0, 4.0], [np.inf, 0.0]):
        _, state = update({"w": np.array(gradient)}, state)
    assert state.limit_state.gamma == 5.0
    _, state = update({"w": np.zeros(2)}, state)
    assert state.limit_state.gamma == pytest.approx(0.98 * 5, rel=1e-14)


def test_the_limit_alone_learns_zeros_too():
    limit = limits.autoclip(50.0, window=3, learn_zeros=True)
    state = limit.init(np.zeros(()))
    for norm in (0.0, 0.0, 4.0):
        found, state = limit.update(np.array(norm), state, step=np.int32(0))
    assert found == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda value: novoclip.autoclip(10.0, learn_zeros=value),
        lambda value: novoclip.adagc(learn_zeros=value),
        lambda value: novoclip.adaclip(learn_zeros=value),
        lambda value: novoclip.adagn(learn_zeros=value),
        lambda value: novoclip.scale_by_spam(learn_zeros=value),
    ],
)
def test_learn_zeros_is_a_flag(make):
    with pytest.raises(TypeError, match="learn_zeros must be True or False; got 1"):
        make(1)
