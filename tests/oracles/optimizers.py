"""Optimizers as plain loops in float64 NumPy, on one dict of arrays: each yields the updates of a step.

Every number may be a function of the step, which counts from 0.
"""

import functools

import numpy as np

from tests.oracles.limits import at


def each(tree, function, *others):
    return {name: function(leaf, *(other[name] for other in others)) for name, leaf in tree.items()}


def zeros(tree):
    return each(tree, np.zeros_like)


def momentum(gradients, decay=0.9, form="heavy_ball", dampening=0.0, nesterov=False):
    v = zeros(gradients[0])
    for step, g in enumerate(gradients):
        b, damp = at(decay, step), 0.0 if step == 0 else at(dampening, step)
        new = 1 - b if form == "averaged" else 1 - damp
        v = each(v, lambda v, g, b=b, new=new: b * v + new * g, g)
        ahead = 1 - b if form == "averaged" else 1
        yield each(v, lambda v, g, b=b, ahead=ahead: ahead * g + b * v, g) if nesterov else v


def adagrad(gradients, initial_accumulator_value=0.1, eps=1e-7, eps_in_sqrt=True, per="element"):
    total = each(gradients[0], lambda g: np.full_like(g, initial_accumulator_value))
    for step, g in enumerate(gradients):
        squares = each(g, lambda g: g**2)
        if per == "tensor":
            squares = each(g, lambda g: np.full_like(g, np.sum(g**2)))
        if per == "tree":
            whole = sum(np.sum(leaf**2) for leaf in g.values())
            squares = each(g, lambda g, whole=whole: np.full_like(g, whole))
        total = each(total, np.add, squares)
        yield over_roots(g, total, at(eps, step), eps_in_sqrt)


def over_roots(tree, squares, eps, eps_in_sqrt):
    roots = each(squares, lambda s: np.sqrt(s + eps) if eps_in_sqrt else np.sqrt(s) + eps)
    return each(tree, lambda x, root: x / np.where(root > 0, root, 1), roots)


def rmsprop(gradients, decay=0.9, eps=1e-8, initial_scale=0.0, eps_in_sqrt=True, bias_correction=False, centered=False):
    square = each(gradients[0], lambda g: np.full_like(g, initial_scale))
    mean, product = zeros(gradients[0]), 1.0
    for step, g in enumerate(gradients):
        b = at(decay, step)
        product *= b
        by = 1 - product if bias_correction else 1.0
        square = each(square, lambda r, g, b=b: b * r + (1 - b) * g**2, g)
        mean = each(mean, lambda m, g, b=b: b * m + (1 - b) * g, g)
        used = each(square, lambda r, m, by=by: np.maximum(r / by - (m / by) ** 2, 0) if centered else r / by, mean)
        yield over_roots(g, used, at(eps, step), eps_in_sqrt)


stddev = functools.partial(rmsprop, centered=True)


def adam(
    gradients,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    bias_correction=True,
    maximum=None,
    nesterov=False,
    bias_correction_mu=True,
    bias_correction_nu=True,
):
    m, v, top = zeros(gradients[0]), zeros(gradients[0]), zeros(gradients[0])
    product1 = product2 = 1.0
    for step, g in enumerate(gradients):
        beta1, beta2 = at(b1, step), at(b2, step)
        product1, product2 = product1 * beta1, product2 * beta2
        m = each(m, lambda m, g, b=beta1: b * m + (1 - b) * g, g)
        v = each(v, lambda v, g, b=beta2: b * v + (1 - b) * g**2, g)
        first = 1 - product1 if bias_correction and bias_correction_mu else 1.0
        second = 1 - product2 if bias_correction and bias_correction_nu else 1.0
        used = each(v, lambda v, by=second: v / by)
        if maximum == "raw":
            top = each(top, np.maximum, v)
            used = each(top, lambda v, by=second: v / by)
        if maximum == "corrected":
            top = each(top, np.maximum, used)
            used = top
        ahead = each(m, lambda m, by=first: m / by)
        if nesterov:
            after = 1 - product1 * beta1 if bias_correction else 1.0
            ahead = each(m, lambda m, g, b=beta1, x=after, y=first: b * m / x + (1 - b) * g / y, g)
        yield each(ahead, lambda m, v: m / (np.sqrt(v + eps_root) + eps), used)


amsgrad = functools.partial(adam, maximum="corrected")


def novograd(gradients, params, b1=0.9, b2=0.25, eps=1e-8, weight_decay=0.0):
    m, v = zeros(gradients[0]), dict.fromkeys(gradients[0], 0.0)
    for step, g in enumerate(gradients):
        for name, leaf in g.items():
            square, b = np.sum(leaf**2), at(b2, step)
            v[name] = square if v[name] == 0 else b * v[name] + (1 - b) * square
            # Nothing can be said of a tensor whose gradients have all been 0.
            scaled = leaf / (np.sqrt(v[name]) + eps) if v[name] > 0 else 0 * leaf
            m[name] = at(b1, step) * m[name] + scaled + at(weight_decay, step) * params[name]
        yield dict(m)


def novoclip(
    gradients, b1=0.9, b2=0.999, eps=1e-8, clipping=1.0, threshold="inverse", per="element", bias_correction=False
):
    m, v = zeros(gradients[0]), zeros(gradients[0])
    weight1, weight2 = 0.0, zeros(gradients[0])
    square = (lambda g: g**2) if per == "element" else (lambda g: np.full_like(g, np.sum(g**2)))
    for step, g in enumerate(gradients):
        beta1, beta2, c = at(b1, step), at(b2, step), at(clipping, step)
        weight1 = beta1 * weight1 + (1 - beta1)
        for name, leaf in g.items():
            old, before = v[name], weight2[name]
            after = beta2 * before + (1 - beta2)
            with np.errstate(divide="ignore", invalid="ignore"):
                if threshold == "inverse":
                    v[name] = beta2 * old + (1 - beta2) * square(leaf)
                    clipped = np.clip(leaf, -c / np.sqrt(v[name]), c / np.sqrt(v[name]))
                    clipped = np.where(v[name] > 0, clipped, leaf)
                    weight2[name] = after
                else:
                    size = 1 if per == "element" else leaf.size
                    limit = np.where(before > 0, c * np.sqrt(old / before / size), np.inf)
                    clipped = np.clip(leaf, -limit, limit)
                    some = square(clipped) > 0
                    v[name] = np.where(some, beta2 * old + (1 - beta2) * square(clipped), old)
                    weight2[name] = np.where(some, after, before)
            m[name] = beta1 * m[name] + (1 - beta1) * clipped
        if bias_correction:
            by = each(weight2, lambda w: np.where(w > 0, w, 1))
            yield each(m, lambda m, v, w, a=weight1: m / a / (np.sqrt(v / w) + eps), v, by)
        else:
            yield each(m, lambda m, v: m / (np.sqrt(v) + eps), v)


def spam(
    gradients,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    threshold=5000.0,
    delay=20,
    reset_every=500,
    warmup=150,
    restart_bias_correction=False,
):
    m, v = zeros(gradients[0]), zeros(gradients[0])
    product1 = product2 = 1.0
    for step, g in enumerate(gradients):
        beta1, beta2, small, since = at(b1, step), at(b2, step), at(eps, step), (step + 1) % reset_every
        if since == 0:
            m, v = zeros(g), zeros(g)
            if restart_bias_correction:
                product1 = product2 = 1.0
        product1, product2 = product1 * beta1, product2 * beta2
        for name, leaf in g.items():
            # Nothing can be said of a number whose gradients since the reset have all been 0.
            cuts = (v[name] > 0) & (since >= delay)
            top = np.where(cuts, np.sqrt(at(threshold, step) * v[name]), np.inf)
            cut = np.clip(leaf, -top, top)
            m[name] = beta1 * m[name] + (1 - beta1) * cut
            v[name] = beta2 * v[name] + (1 - beta2) * cut**2
        length = np.sqrt(1 - product2) / (1 - product1)
        if step + 1 >= reset_every and since < warmup:
            length *= 1 - 0.99 * (1 + np.cos(np.pi * since / (warmup + 1))) / 2
        yield each(m, lambda m, v, by=length, e=small: by * m / (np.sqrt(v) + e), v)


def acclip(gradients, b1=0.9, b2=0.99, eps=1e-5, alpha=1.0, previous=False):
    m, power = zeros(gradients[0]), zeros(gradients[0])
    for step, g in enumerate(gradients):
        beta1, beta2, a, small = at(b1, step), at(b2, step), at(alpha, step), at(eps, step)
        before = power
        m = each(m, lambda m, g, b=beta1: b * m + (1 - b) * g, g)
        power = each(power, lambda p, g, b=beta2, a=a: b * p + (1 - b) * np.abs(g) ** a, g)
        tau = each(power, lambda p, a=a: p ** (1 / a))
        if previous:  # nothing can be said of a number whose gradients before have all been 0
            tau = each(before, lambda p, a=a: np.where(p > 0, p ** (1 / a), np.inf))
        sizes = each(m, lambda m, e=small: np.abs(m) + e)
        yield each(m, lambda m, t, size: m * np.minimum(1, t / size), tau, sizes)


def adopt(gradients, b1=0.9, b2=0.9999, eps=1e-6, bound=None):
    m, v = zeros(gradients[0]), each(gradients[0], np.square)
    yield m
    for step, g in enumerate(gradients[1:], 1):
        beta1, beta2 = at(b1, step), at(b2, step)
        top = step**0.25 if bound is None else at(bound, step)
        for name, leaf in g.items():
            quotient = leaf / np.maximum(np.sqrt(v[name]), at(eps, step))
            m[name] = beta1 * m[name] + (1 - beta1) * np.clip(quotient, -top, top)
            v[name] = beta2 * v[name] + (1 - beta2) * leaf**2
        yield dict(m)


def stable_adamw(gradients, params, b1=0.9, b2=0.99, eps=1e-6, max_rms=1.0, weight_decay=0.0):
    m, v = zeros(gradients[0]), zeros(gradients[0])
    product1 = product2 = 1.0
    for step, g in enumerate(gradients):
        beta1, beta2, e = at(b1, step), at(b2, step), at(eps, step)
        product1, product2 = product1 * beta1, product2 * beta2
        u = {}
        for name, leaf in g.items():
            m[name] = beta1 * m[name] + (1 - beta1) * leaf
            v[name] = beta2 * v[name] + (1 - beta2) * leaf**2
            second = v[name] / (1 - product2)
            direction = m[name] / (1 - product1) / (np.sqrt(second) + e) + at(weight_decay, step) * params[name]
            rms = np.sqrt(np.mean(leaf**2 / np.maximum(second, e**2)))
            u[name] = direction / max(1, rms / at(max_rms, step))
        yield u


def nsgd(gradients, decay=0.9, normalize="after", per="tree"):
    def normalized(tree):
        squares = {name: np.sum(leaf**2) for name, leaf in tree.items()}
        lengths = {name: np.sqrt(sum(squares.values()) if per == "tree" else s) for name, s in squares.items()}
        return {name: leaf / (lengths[name] or 1.0) for name, leaf in tree.items()}

    m = zeros(gradients[0])
    for step, g in enumerate(gradients):
        b = at(decay, step)
        new = normalized(g) if normalize == "before" else each(g, lambda g, b=b: (1 - b) * g)
        m = each(m, lambda m, g, b=b: b * m + g, new)
        yield m if normalize == "before" else normalized(m)
