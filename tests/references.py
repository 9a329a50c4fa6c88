"""Independent NumPy float64 references, written from the equations of the papers.

Each takes one leaf and its gradients, stacked along the first axis, and returns the parameters
before the first step and after each. A rate is a number or one number per step. Layers stacked
along `axes` leading axes have norms of their own.

Deviations from the papers, each on purpose and as the transformations document it:
  LARS      ratio 1 where a norm is zero; epsilon in the denominator; bounds of |w|.
  LAMB      with the bias correction of the published version, which the third lacks; ratio 1
            where a norm is zero.
  AdaBound  as released: Adam's bias correction and epsilon, no division by sqrt(t), bounds that
            follow the schedule through base_lr; AdaBoundW's decay has no rate.
  AdaX      as released: epsilon joins sqrt(v), not its corrected form.
  Amos      as released: the maximum of v and 2**-125; momentum is an average of the steps.
  EGDD      as released: one scale per leaf, the rate inside the momentum, the new gain in it.
  EG        the signed form keeps u and v.
"""

import numpy as np


def lion(p, grads, lr, b1=0.9, b2=0.99, wd=0.0):
    """Algorithm 2 of 2302.06675."""
    m, path = np.zeros_like(p), [p]
    for g, eta in zip(grads, _per_step(lr, grads), strict=True):
        u = np.sign(b1 * m + (1 - b1) * g)
        p = p - eta * (u + wd * p)
        m = b2 * m + (1 - b2) * g
        path.append(p)
    return np.stack(path)


def lars(p, grads, lr, wd=0.0, coefficient=1e-3, eps=0.0, momentum=0.9, nesterov=False, **options):
    """Algorithm 1 of 1708.03888; `options` of `trust_ratio`."""
    velocity, path = np.zeros_like(p), [p]
    for g, eta in zip(grads, _per_step(lr, grads), strict=True):
        step = eta * trust_ratio(p, g, coefficient, wd, eps, **options) * (g + wd * p)
        velocity = momentum * velocity + step
        p = p - (step + momentum * velocity if nesterov else velocity)
        path.append(p)
    return np.stack(path)


def lars_nvcaffe(p, grads, lr, wd, coefficient, momentum):
    """The GPU path of the authors' Caffe: no decay in the ratio, (1 - momentum) before it."""
    velocity, path = np.zeros_like(p), [p]
    for g, eta in zip(grads, _per_step(lr, grads), strict=True):
        ratio = (1 - momentum) * trust_ratio(p, g, coefficient, 0.0, 0.0)
        if _norm(p, 0) == 0 or _norm(g, 0) == 0:
            ratio = 1.0
        velocity = momentum * velocity + eta * ratio * (g + wd * p)
        p = p - velocity
        path.append(p)
    return np.stack(path)


def lamb(p, grads, lr, b1=0.9, b2=0.999, eps=1e-6, eps_root=0.0, wd=0.0, **options):
    """Algorithm 2 of 1904.00962; `options` of `trust_ratio`."""
    m, v, path = np.zeros_like(p), np.zeros_like(p), [p]
    for t, (g, eta) in enumerate(zip(grads, _per_step(lr, grads), strict=True), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps) + wd * p
        p = p - eta * trust_ratio(p, u, 1.0, 0.0, 0.0, **options) * u
        path.append(p)
    return np.stack(path)


def trust_ratio(p, u, coefficient, wd, eps, clip=None, axes=0, adapt=True):
    """c·phi(|p|) / (|u| + wd·|p| + eps) of each layer slice, 1 where a norm is zero."""
    if not adapt:
        return 1.0
    p_norm, u_norm = _norm(p, axes), _norm(u, axes)
    phi = p_norm if clip is None else np.clip(p_norm, *clip)
    usable = (p_norm > 0) & (u_norm > 0)
    return np.where(usable, coefficient * phi / np.where(usable, u_norm + wd * p_norm + eps, 1), 1)


def adabound(
    p,
    grads,
    lr,
    final_lr=0.1,
    base_lr=None,
    b1=0.9,
    b2=0.999,
    gamma=1e-3,
    eps=1e-8,
    wd=0.0,
    amsbound=False,
    decoupled=False,
):
    """Algorithms 2 and 3 of 1902.09843; `decoupled`: AdaBoundW."""
    base_lr = lr if base_lr is None else base_lr
    m, v, v_max, path = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), [p]
    for t, (g, eta) in enumerate(zip(grads, _per_step(lr, grads), strict=True), start=1):
        g = g if decoupled else g + wd * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        v_max = np.maximum(v_max, v)
        a = eta * np.sqrt(1 - b2**t) / (1 - b1**t) / (np.sqrt(v_max if amsbound else v) + eps)
        f = final_lr * eta / base_lr
        a = np.minimum(np.maximum(a, f * (1 - 1 / (gamma * t + 1))), f * (1 + 1 / (gamma * t)))
        p = p - a * m - (wd * p if decoupled else 0)
        path.append(p)
    return np.stack(path)


def adax(p, grads, lr, b1=0.9, b2=1e-4, eps=1e-12, wd=0.0, decoupled=False, paper_eps=False):
    """Algorithms 1 and 2 of 2004.09740, the second moment as displayed: it grows for ever.

    `paper_eps` adds epsilon to the root of the corrected second moment.
    """
    m, v, path = np.zeros_like(p), np.zeros_like(p), [p]
    for t, (g, eta) in enumerate(zip(grads, _per_step(lr, grads), strict=True), start=1):
        g = g if decoupled else g + wd * p
        m = b1 * m + (1 - b1) * g
        v = (1 + b2) * v + b2 * g**2
        root_c = np.sqrt(np.expm1(t * np.log1p(b2)))
        u = m / (np.sqrt(v) / root_c + eps) if paper_eps else root_c * m / (np.sqrt(v) + eps)
        p = p - eta * u - (eta * wd * p if decoupled else 0)
        path.append(p)
    return np.stack(path)


def amos(
    p,
    grads,
    lr,
    eta,
    axes=(),
    beta=0.999,
    extra_l2=0.0,
    c=0.25,
    d=0.25,
    momentum=0.0,
    clip=np.inf,
):
    """Algorithm 1 of 2210.11693; slots are means over `axes`."""
    v = b = np.zeros_like(np.mean(p, axis=axes, keepdims=True) if axes else p)
    average, path = np.zeros_like(p), [p]
    for t, (g, xi) in enumerate(zip(grads, _per_step(lr, grads), strict=True), start=1):
        g = np.clip(g, -clip, clip)
        g2 = np.mean(g**2, axis=axes, keepdims=True) if axes else g**2
        v = beta * v + (1 - beta) * g2
        r = (1 - beta**t) / np.maximum(v, 2.0**-125)
        gamma = xi**2 * r * g2 / np.sqrt(1 + c * np.sqrt(xi) * b)
        decay = 1 / (1 + d * np.sqrt(xi * eta) * b)
        delta = decay * (xi * eta * np.sqrt(r) * g + (gamma / 2 + extra_l2) * p)
        b = b + gamma * (1 + b)
        average = momentum * average + (1 - momentum) * delta
        p = p - average
        path.append(p)
    return np.stack(path)


def egdd(
    p,
    grads,
    lr,
    momentum=0.9,
    beta=0.9,
    gain_lr=1e-2,
    scale_lr=1e-3,
    use_directions=True,
    use_signs=True,
    gain_bounds=(1e-2, 1e2),
    scale_bounds=(0.1, 10.0),
):
    """2202.00145."""
    h, q, gain, scale, path = np.zeros_like(p), np.zeros_like(p), np.ones_like(p), 1.0, [p]
    for t, (g, eta) in enumerate(zip(grads, _per_step(lr, grads), strict=True), start=1):
        size = (np.linalg.norm(g) + 1e-10) * (np.linalg.norm(h) + 1e-10) if use_directions else 1.0
        scale = np.clip(scale * np.exp(scale_lr * np.sum(g * h) / size), *scale_bounds)
        product = np.sign(g * q) if use_signs else g * q / (1 - beta ** max(t - 1, 1))
        gain = np.clip(gain * np.exp(gain_lr * product), *gain_bounds)
        h = momentum * h + eta * gain * g
        q = beta * q + (1 - beta) * g
        p = p - scale * h
        path.append(p)
    return np.stack(path)


def accumulated_momentum(p, grads, k, lr, decay=0.9, nesterov=False):
    """k gradients averaged, then a step of momentum in its averaging form."""
    m, path = np.zeros_like(p), [p]
    for t, eta in enumerate(_per_step(lr, grads), start=1):
        if t % k == 0:
            mean = np.mean(grads[t - k : t], axis=0)
            m = decay * m + (1 - decay) * mean
            p = p - eta * (decay * m + (1 - decay) * mean if nesterov else m)
        path.append(p)
    return np.stack(path)


def accumulated_adam(p, grads, k, lr, b1=0.9, b2=0.999, eps=1e-8):
    """Adam on the mean of k gradients and the mean of their squares, kexue.fm 8634."""
    m, v, path = np.zeros_like(p), np.zeros_like(p), [p]
    for t, eta in enumerate(_per_step(lr, grads), start=1):
        if t % k == 0:
            group = grads[t - k : t]
            m = b1 * m + (1 - b1) * np.mean(group, axis=0)
            v = b2 * v + (1 - b2) * np.mean(group**2, axis=0)
            n = t // k
            p = p - eta * (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + eps)
        path.append(p)
    return np.stack(path)


def adam_stepping_every(p, grads, k, lr, b1, b2, eps):
    """The approximation of kexue.fm 8634: Adam's moments at every gradient, a step at each k-th."""
    m, v, path = np.zeros_like(p), np.zeros_like(p), [p]
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        if t % k == 0:
            p = p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        path.append(p)
    return np.stack(path)


def exponentiated_gradient(p, grads, lr, domain, axis=None, wd=0.0):
    """Kivinen and Warmuth's EG and EG+-."""
    u, v, path = np.maximum(p, 0) + 0.5, np.maximum(-p, 0) + 0.5, [p]
    for g, eta in zip(grads, _per_step(lr, grads), strict=True):
        if domain == "signed":
            u, v = u * np.exp(-eta * (g + wd)), v * np.exp(-eta * (-g + wd))
            p = u - v
        else:
            p = p * np.exp(-eta * (g + wd))
            p = p / p.sum(axis, keepdims=True) if domain == "simplex" else p
        path.append(p)
    return np.stack(path)


def _norm(x, axes):
    return np.sqrt(np.sum(x * x, axis=tuple(range(axes, x.ndim)), keepdims=True))


def _per_step(rate, grads):
    return np.broadcast_to(rate, len(grads))
