"""Optimizers as plain loops in float64 NumPy, on one dict of arrays: each yields the updates of a step.

Every number may be a function of the step, which counts from 0.
"""

import numpy as np

from tests.oracles.limits import at


def each(tree, function, *others):
    return {name: function(leaf, *(other[name] for other in others)) for name, leaf in tree.items()}


def zeros(tree):
    return each(tree, np.zeros_like)


def momentum(gradients, gamma=0.9, form="heavy_ball", dampening=0.0, nesterov=False):
    v = zeros(gradients[0])
    for step, g in enumerate(gradients):
        b, damp = at(gamma, step), 0.0 if step == 0 else at(dampening, step)
        new = 1 - b if form == "averaged" else 1 - damp
        v = each(v, lambda v, g, b=b, new=new: b * v + new * g, g)
        ahead = 1 - b if form == "averaged" else 1
        yield each(v, lambda v, g, b=b, ahead=ahead: ahead * g + b * v, g) if nesterov else v


def adagrad(gradients, eps=1e-10, eps_root=0.0, initial_accumulator=0.0, per="element"):
    total = each(gradients[0], lambda g: np.full_like(g, initial_accumulator))
    for g in gradients:
        squares = each(g, lambda g: g**2)
        if per == "tensor":
            squares = each(g, lambda g: np.full_like(g, np.sum(g**2)))
        if per == "tree":
            whole = sum(np.sum(leaf**2) for leaf in g.values())
            squares = each(g, lambda g, whole=whole: np.full_like(g, whole))
        total = each(total, np.add, squares)
        divisors = each(total, lambda s: np.sqrt(s + eps_root) + eps)
        yield each(g, lambda g, d: g / np.where(d > 0, d, 1), divisors)


def rmsprop(gradients, rho=0.9, eps=1e-8, eps_root=0.0, centered=False, momentum=0.0):
    square, mean, buffer = zeros(gradients[0]), zeros(gradients[0]), zeros(gradients[0])
    for step, g in enumerate(gradients):
        b = at(rho, step)
        square = each(square, lambda r, g, b=b: b * r + (1 - b) * g**2, g)
        mean = each(mean, lambda m, g, b=b: b * m + (1 - b) * g, g)
        variance = each(square, lambda r, m: np.maximum(r - m**2, 0) if centered else r, mean)
        scaled = each(g, lambda g, r: g / (np.sqrt(r + eps_root) + eps), variance)
        buffer = each(buffer, lambda v, u, step=step: at(momentum, step) * v + u, scaled)
        yield buffer


def adam(gradients, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, bias_correction=True, maximum=None):
    m, v, top = zeros(gradients[0]), zeros(gradients[0]), zeros(gradients[0])
    product1 = product2 = 1.0
    for step, g in enumerate(gradients):
        beta1, beta2 = at(b1, step), at(b2, step)
        product1, product2 = product1 * beta1, product2 * beta2
        m = each(m, lambda m, g, b=beta1: b * m + (1 - b) * g, g)
        v = each(v, lambda v, g, b=beta2: b * v + (1 - b) * g**2, g)
        first, second = (1 - product1, 1 - product2) if bias_correction else (1.0, 1.0)
        used = each(v, lambda v, by=second: v / by)
        if maximum == "raw":
            top = each(top, np.maximum, v)
            used = each(top, lambda v, by=second: v / by)
        if maximum == "corrected":
            top = each(top, np.maximum, used)
            used = top
        yield each(m, lambda m, v, by=first: m / by / (np.sqrt(v + eps_root) + eps), used)


def novograd(gradients, params, b1=0.95, b2=0.98, eps=1e-8, weight_decay=0.0):
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
