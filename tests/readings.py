"""Independent NumPy versions of the samplers, from their papers: `step(denoise, x, memory, now, after, z) -> x, memory`.

`now` and `after` are pairs (alpha, sigma), `denoise(x, alpha, sigma)` gives x0, and z is the step's normal number. `memory` is
None before the first step.
"""

import numpy as np


def preserving(step):
    """Applies a step for the variance-preserving process to any process, by scaling x there and back."""

    def scaled(denoise, x, memory, now, after, z):
        c, d = np.hypot(*now), np.hypot(*after)
        x, memory = step(denoise, x / c, memory, (now[0] / c, now[1] / c), (after[0] / d, after[1] / d), z)
        return d * x, memory

    return scaled


def ddim(eta):
    """Song et al. 2021, equations 12 and 16, for the variance-preserving process. `a` is their alpha (our alpha^2)."""

    def step(denoise, x, memory, now, after, z):
        a, a_next = now[0] ** 2, after[0] ** 2
        x0 = denoise(x, *now)
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        s = eta * np.sqrt((1 - a_next) / (1 - a)) * np.sqrt(1 - a / a_next)
        return np.sqrt(a_next) * x0 + np.sqrt(1 - a_next - s**2) * eps + s * z, memory

    return preserving(step)


def ddpm(log_variance):
    """Ho et al. 2020, equations 6 and 7, with alpha_bar = alpha^2 of this library. `log_variance(beta, beta~)` is that of
    section 3.2, or of equation 15 of Nichol & Dhariwal 2021.
    """

    def step(denoise, x, memory, now, after, z):
        bar, bar_next = now[0] ** 2, after[0] ** 2
        alpha_t = bar / bar_next
        beta = 1 - alpha_t
        beta_tilde = (1 - bar_next) / (1 - bar) * beta
        x0 = denoise(x, *now)
        mean = np.sqrt(bar_next) * beta / (1 - bar) * x0 + np.sqrt(alpha_t) * (1 - bar_next) / (1 - bar) * x
        noise = np.exp(0.5 * log_variance(beta, beta_tilde)) * z if after[1] > 0 else 0
        return mean + noise, memory

    return preserving(step)


def edm(second_order, s_churn=0.0, s_min=0.0, s_max=np.inf, s_noise=1.0, steps=1):
    """Karras et al. 2022, algorithm 2, in their coordinates x / alpha and sigma / alpha."""

    def step(denoise, x, memory, now, after, z):
        y, t, t_next = x / now[0], now[1] / now[0], after[1] / after[0]
        gamma = min(s_churn / steps, np.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        t_hat = t + gamma * t
        y_hat = y + np.sqrt(t_hat**2 - t**2) * s_noise * z
        d = (y_hat - denoise(y_hat, 1.0, t_hat)) / t_hat
        y_next = y_hat + (t_next - t_hat) * d
        if second_order and t_next > 0:
            d_next = (y_next - denoise(y_next, 1.0, t_next)) / t_next
            y_next = y_hat + (t_next - t_hat) * (d + d_next) / 2
        return after[0] * y_next, memory

    return step


def flow_heun(denoise, x, memory, now, after, z):
    """The trapezoidal rule in x along the straight line from one (alpha, sigma) to the next."""

    def velocity(x, alpha, sigma):
        x0 = denoise(x, alpha, sigma)
        return (after[0] - now[0]) * x0 + (after[1] - now[1]) * (x - alpha * x0) / sigma

    v = velocity(x, *now)
    if after[1] == 0:
        return x + v, memory
    return x + (v + velocity(x + v, *after)) / 2, memory


def ancestral(t, t_next, eta):
    """k-diffusion's ancestral step: the level to step down to, and the noise that leads up again."""
    up = min(t_next, eta * np.sqrt(t_next**2 * (t**2 - t_next**2) / t**2))
    return np.sqrt(t_next**2 - up**2), up


def euler_ancestral(eta, s_noise):
    def step(denoise, x, memory, now, after, z):
        y, t, t_next = x / now[0], now[1] / now[0], after[1] / after[0]
        down, up = ancestral(t, t_next, eta)
        y = y + (down - t) * (y - denoise(y, 1.0, t)) / t
        return after[0] * (y + s_noise * up * z), memory

    return step


def dpmpp_2s(eta=0.0, s_noise=1.0):
    """Lu et al. 2022, algorithm 1 with r = 1/2, which uses only sigma / alpha. It is ancestral as in k-diffusion."""

    def step(denoise, x, memory, now, after, z):
        y, t = x / now[0], now[1] / now[0]
        down, up = ancestral(t, after[1] / after[0], eta)
        x0 = denoise(y, 1.0, t)
        if down == 0:
            return after[0] * x0, memory
        lam, h = -np.log(t), np.log(t / down)
        middle = np.exp(-(lam + h / 2))
        u = middle / t * y - np.expm1(-h / 2) * x0
        y = down / t * y - np.expm1(-h) * denoise(u, 1.0, middle)
        return after[0] * (y + s_noise * up * z), memory

    return step


def dpmpp_2m(denoise, x, memory, now, after, z):
    """Lu et al. 2022, algorithm 2. The first and the last step are of first order."""
    x0 = denoise(x, *now)
    lam = np.log(now[0] / now[1])
    if after[1] == 0:
        return after[0] * x0, memory
    h = np.log(after[0] / after[1]) - lam
    d = x0
    if memory:
        x0_last, lam_last = memory
        r = (lam - lam_last) / h
        d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_last
    return after[1] / now[1] * x - after[0] * np.expm1(-h) * d, (x0, lam)


def dpmpp_3m(denoise, x, memory, now, after, z):
    """The parabola through the last three predictions, by Lagrange's formula, integrated numerically: `x' = sigma' / sigma x +
    sigma' * integral of e^lambda x0(lambda)`. The second step is that of 2M.
    """
    x0, lam = denoise(x, *now), np.log(now[0] / now[1])
    past = [*(memory or []), (x0, lam)]
    if after[1] == 0:
        return after[0] * x0, past
    lam_next = np.log(after[0] / after[1])
    if len(past) < 3:
        return dpmpp_2m(denoise, x, past[0] if len(past) == 2 else None, now, after, z)[0], past
    nodes, shares = np.polynomial.legendre.leggauss(40)
    at = lam + (nodes + 1) / 2 * (lam_next - lam)
    x = after[1] / now[1] * x
    for m, lam_m in past[-3:]:
        others = [other for _, other in past[-3:] if other != lam_m]
        basis = np.prod([(at - other) / (lam_m - other) for other in others], axis=0)
        x = x + after[1] * (shares * np.exp(at) * basis).sum() * (lam_next - lam) / 2 * m
    return x, past


def dpmpp_sde(eta, s_noise):
    """Lu et al. 2022, section 5, at `alpha = 1`, with k-diffusion's eta."""

    def step(denoise, x, memory, now, after, z):
        y, t, t_next = x / now[0], now[1] / now[0], after[1] / after[0]
        x0 = denoise(y, 1.0, t)
        if t_next == 0:
            return after[0] * x0, memory
        h = np.log(t / t_next)
        d = x0 if memory is None else x0 + h / (2 * memory[1]) * (x0 - memory[0])
        y = t_next / t * np.exp(-eta * h) * y + (1 - np.exp(-(1 + eta) * h)) * d
        return after[0] * (y + t_next * np.sqrt(1 - np.exp(-2 * eta * h)) * s_noise * z), (x0, h)

    return step


def unipc(order, variant):
    """Zhao et al. 2023, algorithms 1 and 2 on the x0-prediction, by their matrices R and vectors phi."""

    def solution(r, h, corrected):
        """The a of equation 5, times B(h), of the predictor, or of the corrector, whose last r is 1."""
        b = -h if variant == 1 else np.expm1(-h)
        if len(r) == 0:
            return np.zeros(0)
        if len(r) == 1 and (corrected or order > 1):
            return np.full(1, 0.5 * b)
        phi, factorial, right = np.expm1(-h) / -h - 1, 1, []
        for i in range(1, len(r) + 1):
            right.append(phi * factorial)
            factorial *= i + 1
            phi = phi / -h - 1 / factorial
        return np.linalg.solve(np.vander(r, increasing=True).T, right)

    def along(x, past, now, after, new=None):
        """From x at `now` by the past predictions (the last one at `now`), and optionally the new one at `after`."""
        (m0, lam0), h = past[-1], np.log(after[0] / after[1]) - np.log(now[0] / now[1])
        r = [(lam - lam0) / h for _, lam in past[-2::-1]] + ([] if new is None else [1.0])
        slopes = [(m - m0) / r_k for (m, _), r_k in zip(past[-2::-1], r, strict=False)] + [new - m0 for _ in r[len(past) - 1 :]]
        a = solution(np.array(r), h, new is not None)
        return after[1] / now[1] * x - after[0] * (
            np.expm1(-h) * m0 + sum(a_k * slope for a_k, slope in zip(a, slopes, strict=True))
        )

    def step(denoise, x, memory, now, after, z):
        x0, lam = denoise(x, *now), np.log(now[0] / now[1])
        past = []
        if memory:
            past, start, before, predicted = memory
            x = x + along(start, past, before, now, x0) - predicted
        past = [*past, (x0, lam)][-order:]
        if after[1] == 0:
            return after[0] * x0, None
        predicted = along(x, past, now, after)
        return predicted, (past, x, now, predicted)

    return step


def heun_sde(eta):
    """The SDE `dy = c (x0 - y) / tau |dtau| + eta sqrt|dtau| z` in y = x / alpha and tau = (sigma / alpha)^2, with c = (1 +
    eta^2) / 2. It is solved by quadrature with x0 linear in tau, up to the x0 at the end of a step with constant x0.
    """
    nodes, weights = np.polynomial.legendre.leggauss(60)
    c = (1 + eta**2) / 2

    def step(denoise, x, memory, now, after, z):
        y, tau, to = x / now[0], (now[1] / now[0]) ** 2, (after[1] / after[0]) ** 2
        x0 = denoise(y, 1.0, np.sqrt(tau))
        if to == 0:
            return after[0] * x0, memory
        noise = np.sqrt(to * (1 - (to / tau) ** eta**2)) * z
        end = denoise((to / tau) ** c * y + (1 - (to / tau) ** c) * x0 + noise, 1.0, np.sqrt(to))
        log_tau = np.log(to) + (nodes + 1) / 2 * np.log(tau / to)
        line = [x0 + (tau - t) / (tau - to) * (end - x0) for t in np.exp(log_tau)]
        drift = sum(w * c * (to / t) ** c * at for w, t, at in zip(weights, np.exp(log_tau), line, strict=True))
        return after[0] * ((to / tau) ** c * y + np.log(tau / to) / 2 * drift + noise), memory

    return step


def predictor_corrector(size):
    """Song et al. 2021, algorithm 1, in y = x / alpha: a step of the ODE, followed by Langevin dynamics. The dynamics run for
    the time `size (r^2 - r'^2)` in the Gaussian of mean x0 and deviation r' that belongs to the prediction. They are solved
    exactly.
    """

    def step(denoise, x, memory, now, after, z):
        y, r, end = x / now[0], now[1] / now[0], after[1] / after[0]
        y = y + (end - r) * (y - denoise(y, 1.0, r)) / r
        if end > 0:
            x0, kept = denoise(y, 1.0, end), np.exp(-size * (r**2 - end**2) / (2 * end**2))
            y = x0 + kept * (y - x0) + np.sqrt(1 - kept**2) * end * z
        return after[0] * y, memory

    return step
