# SPDX-License-Identifier: Apache-2.0
"""guidance_coefficients: a step's coefficient table for each sample, from the statistics of its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

# In the order of csrc/guidance/guidance_coefficients/guidance_coefficients.h
METHODS: Final = (
    "cfg",
    "apg",
    "zero_star",
    "tangential",
    "magnitude_aware",
    "norm_balanced",
    "perpendicular",
    "black_scholes",
)
PARAMETERS: Final = (
    "scale",
    "from_cond",
    "rescale",
    "threshold",
    "along_prediction",
    "along_state",
    "first",
    "second",
    "third",
    "fourth",
)

_ARGUMENTS: Final = (
    "Tensor stats, Tensor parameters, Tensor table, Tensor? step, Tensor? latch, int method, int numel, int row, "
    "int[] targets"
)


def _fake(
    stats: Tensor, parameters: Tensor, table: Tensor, step: Tensor | None, latch: Tensor | None, *_: object
) -> list[Tensor]:  # fmt: skip
    _check_devices(stats, parameters, table, step, latch)
    coefficients = table.new_empty((stats.shape[0], *table.shape[-2:]))
    return [coefficients] if latch is None else [coefficients, torch.empty_like(latch)]


def _fake_out(*tensors: Any, results: Sequence[Tensor]) -> None:
    _check_devices(*tensors[:5], *results)


def _check_devices(stats: Tensor, *others: Tensor | None) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for x in others:
        if x is not None and x.device != stats.device:
            raise RuntimeError(
                f"fastdiff::guidance_coefficients: every tensor must be on {stats.device} like stats, "
                f"got one on {x.device}"
            )


_native.define(f"guidance_coefficients({_ARGUMENTS}) -> Tensor[]", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"guidance_coefficients.out({_ARGUMENTS}, *, Tensor(a!)[] results) -> ()", _fake_out)

# The operator itself, for callers whose tables are constants, which torch.compile cannot ask for gradients.
launch: Any = torch.ops.fastdiff.guidance_coefficients.default


def guidance_coefficients(
    stats: Tensor,
    parameters: Tensor,
    table: Tensor,
    *,
    method: str,
    numel: int,
    row: int,
    targets: Sequence[int],
    step: Tensor | None = None,
    latch: Tensor | None = None,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    r"""Resolve a guidance into the coefficients of :func:`fastdiff.linear_step`, per sample and on the device.

    Each method's guided prediction is c plus an update, a combination of the features of
    :func:`fastdiff.guidance_stats` whose weights depend on the sample: ``guided = c + sum_n w_n f_n``. A program has a
    row for the update, from which later rows take it; here that row gets its coefficients::

        out[b, i, k] = table[s, i, k] + sum_n [i == row and k == targets[n]] w_n

    Weights are found in float64 and rounded once. With G_ij = f_i.f_j over a sample's n elements, c = u + d, s
    the scale and v the change, guided = u' + s v (c + s v with `from_cond`), where u' = u, v = d and:

    ===================  ==============================================================================================
    ``cfg``              guided = u + s d + `first` f_2 + `second` f_3 (Ho & Salimans 2022; f_2 and f_3: perturbed
                         branches, more prompts)
    ``apg``              v (f_2 if there is one: a momentum) shortened to the norm `second`, if > 0, and its part along
                         c times `first` (eta) (Sadat et al. 2024)
    ``zero_star``        u' = (c.u / (u.u + 1e-8)) u, v = c - u' (Fan et al. 2025)
    ``tangential``       u' = the part of u along the first right singular vector of [c; u], v = c - u' (TCFG,
                         Kwon et al. 2025): b (a c + b u) with (a, b) the first eigenvector of the 2x2 Gram matrix
    ``magnitude_aware``  s' = 1 + (s - 1) exp(-first \|d\| / \|u\|) (MAMBO-G); from c: s exp(...)
    ``norm_balanced``    u' = u + k f_2, k = clip(r, first, second) / r, r = \|f_2\| / \|s d\|; r = 1 where
                         \|s d\| = 0, k = 1 where \|f_2\| = 0 (Guide-and-Rescale)
    ``perpendicular``    v = d - sum_j w_j (f_j - (f_j.d / d.d) d), j = 2, 3 with weights `first`, `second` (Perp-Neg);
                         the part along d is 0 where d is
    ``black_scholes``    `stats` are spots S [B, candidates], the update is the candidate of the least call price
                         S Phi(d1) - K e^(-r tau) Phi(d2), K, r, sigma, tau = `first` ... `fourth`; ties: the first
    ===================  ==============================================================================================

    `rescale` phi > 0 then multiplies all weights by phi std(c) / std(guided) + 1 - phi (Lin et al. 2024, section 3.4).
    With a `latch`, a sample whose cosine of k u + l x and k c + l x (k = `along_prediction`, l = `along_state`, where
    f_2 must be x - u unless l is 0) is at least `threshold` takes c from now on: the update's row and those before it
    become 0, and u is not read any more (Adaptive Guidance, Castillo et al. 2025).

    Args:
        stats: float64 ``[B, 5 | 9 | 14]`` of :func:`fastdiff.guidance_stats`; for ``black_scholes`` ``[B, 1 ... 8]``.
        parameters: float64 ``[10]``: scale, from_cond, rescale, threshold, along_prediction, along_state, first,
            second, third, fourth. With ``step``: ``[S, 10]``.
        table: float32 or float64 ``[M, C]``, or ``[S, M, C]``: the program without its update.
        method: one of the above.
        numel: n, the elements of a sample.
        row: of the update.
        targets: the columns of the features, in order; for ``black_scholes`` those of the candidates.
        step: int64 tensor of one element on the same device: which step of the tables.
        latch: uint8 ``[B]``: 1 where a sample has reached the threshold before.
        out: where to write: (coefficients,), with a latch (coefficients, next latch). The next latch may be ``latch``.

    Returns:
        (coefficients,) ``[B, M, C]`` like table, or with ``latch`` (coefficients, next latch ``[B]``).

    Raises:
        RuntimeError: a wrong dtype, shape, count, device, overlap or number. Nothing is written then. (A wrong step on
            CUDA stops the kernel and surfaces as a CUDA error.)
        NotImplementedError: a gradient with respect to an input is asked for.

    Source: the papers above; the formulas' derivations are in docs/numerics.md.
    """
    if method not in METHODS:
        raise RuntimeError(
            f"fastdiff::guidance_coefficients: method must be one of {', '.join(METHODS)}, got {method!r}"
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in (stats, parameters, table)):
        raise NotImplementedError(
            "fastdiff.guidance_coefficients: no gradient is defined; detach the inputs or call it under "
            "torch.no_grad()"
        )
    rest = (step, latch, METHODS.index(method), numel, row, list(targets))
    if out is None:
        return tuple(launch(stats, parameters, table, *rest))
    results = list(out)
    torch.ops.fastdiff.guidance_coefficients.out(stats, parameters, table, *rest, results=results)
    _native.mark_written(results)
    return tuple(results)


# ---- reference -------------------------------------------------------------------------------------------------


class _Moments:
    """The sums of each sample, and products of combinations of the features, float64 [B]."""

    def __init__(self, stats: Tensor, numel: int) -> None:
        self.numel = numel
        self.features = next(f for f in (2, 3, 4) if f * (f + 3) // 2 == stats.shape[1])
        self._stats = stats

    def feature(self, j: int) -> Tensor:
        """Its coefficients [B, F]."""
        unit = torch.zeros(self._stats.shape[0], self.features, dtype=torch.float64)
        unit[:, j] = 1
        return unit

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(self._stats.shape[0], dtype=torch.float64)
        for i in range(self.features):
            for j in range(self.features):
                low, high = min(i, j), max(i, j)
                both = (a[:, i] != 0) & (b[:, j] != 0)
                term = a[:, i] * b[:, j] * self._stats[:, high * (high + 3) // 2 + 1 + low]
                total = total + torch.where(both, term, 0.0)
        return total

    def deviation(self, a: Tensor) -> Tensor:
        terms = [torch.where(a[:, j] != 0, a[:, j] * self._stats[:, j * (j + 3) // 2], 0.0)
                 for j in range(self.features)]  # fmt: skip
        total = torch.stack(terms).sum(0)
        return ((self.dot(a, a) - total**2 / self.numel).clamp_min(0) / (self.numel - 1)).sqrt()


def _guided(m: _Moments, method: str, p: dict[str, Tensor]) -> Tensor:
    """The weights of the features [B, F]."""
    u, d = m.feature(0), m.feature(1)
    c, change, scale = u + d, d, p["scale"].expand(u.shape[0])

    def times(factor: Tensor, a: Tensor) -> Tensor:
        return factor[:, None] * a

    more = torch.zeros_like(u)
    if method == "cfg":
        for weight, j in zip((p["first"], p["second"]), range(2, m.features), strict=False):
            more = more + weight * m.feature(j)
    if method == "apg":
        v = m.feature(2) if m.features > 2 else d
        limit = p["second"] / m.dot(v, v).sqrt()
        factor = torch.where(p["second"] > 0, torch.minimum(torch.ones_like(limit), limit), 1.0)
        along = m.dot(v, c) / m.dot(c, c).sqrt().clamp_min(1e-12) ** 2
        removed = torch.where(p["first"] != 1, (1 - p["first"]) * factor * along, 0.0)
        change = times(factor, v) - times(removed, c)
    if method == "zero_star":
        u = times(m.dot(c, u) / (m.dot(u, u) + 1e-8), u)
        change = c - u
    if method == "tangential":
        gram = torch.stack((m.dot(c, c), m.dot(c, u), m.dot(c, u), m.dot(u, u)), -1).reshape(-1, 2, 2)
        first = torch.linalg.eigh(gram).eigenvectors[:, :, -1]
        u = times(first[:, 1], times(first[:, 0], c) + times(first[:, 1], u))
        change = c - u
    if method == "norm_balanced":
        norm, gradient = scale.abs() * m.dot(d, d).sqrt(), m.dot(m.feature(2), m.feature(2)).sqrt()
        ratio = torch.where(norm == 0, 1.0, gradient / norm)
        factor = torch.where(
            gradient == 0, 1.0, torch.minimum(torch.maximum(ratio, p["first"]), p["second"]) / ratio
        )
        more = times(factor, m.feature(2))
    if method == "perpendicular":
        dd = m.dot(d, d)
        for weight, j in zip((p["first"], p["second"]), range(2, m.features), strict=False):
            along = torch.where(dd == 0, 0.0, m.dot(m.feature(j), d) / dd)
            change = change - weight * (m.feature(j) - times(along, d))
    if method == "magnitude_aware":
        fade = torch.exp(-p["first"] * (m.dot(d, d).sqrt() / m.dot(u, u).sqrt()))
        scale = torch.where(p["from_cond"] != 0, scale * fade, 1 + (scale - 1) * fade)
    return torch.where(p["from_cond"] != 0, c, u) + times(scale, change) + more


def _latched(m: _Moments, p: dict[str, Tensor], latch: Tensor) -> Tensor:
    along, state = p["along_prediction"], p["along_state"]
    u = (along + state) * m.feature(0)
    if m.features > 2:
        u = u + state * m.feature(2)
    c = u + along * m.feature(1)
    norms = [m.dot(a, a).clamp_min(0).sqrt().clamp_min(1e-8) for a in (u, c)]
    return (latch != 0) | (m.dot(u, c) / (norms[0] * norms[1]) >= p["threshold"])


def call_price(spot: Tensor, strike: float, rate: float, sigma: float, tau: float) -> Tensor:
    """The Black-Scholes price of a call, float64, any shape: S Phi(d1) - K e^(-r tau) Phi(d2).

    max(S - K e^(-r tau), 0) where sigma sqrt(tau) = 0, and 0 where S <= 0. Phi by erfc: no digits are lost in the tail.
    """
    spot = spot.double()
    discounted = torch.as_tensor(strike * torch.exp(torch.tensor(-rate * tau, dtype=torch.float64)))
    spread = sigma * tau**0.5
    if not spread > 0:
        price = (spot - discounted).clamp_min(0)
    else:
        d1 = (torch.log(spot.clamp_min(0) / strike) + (rate + sigma**2 / 2) * tau) / spread
        tail = [torch.special.erfc(-d / 2**0.5) for d in (d1, d1 - spread)]
        price = 0.5 * (spot * tail[0] - discounted * tail[1])
    return torch.where(spot <= 0, torch.zeros_like(spot), price)


def reference(
    stats: Tensor, parameters: Tensor, table: Tensor, *, method: str, numel: int, row: int,
    targets: Sequence[int], step: Tensor | None = None, latch: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """:func:`guidance_coefficients` in plain PyTorch and float64, rounded at the end."""
    samples = stats.shape[0]
    if step is not None:
        parameters, table = parameters[int(step)], table[int(step)]
    p = dict(zip(PARAMETERS, parameters.unbind(), strict=True))
    weights = torch.zeros(samples, len(targets), dtype=torch.float64)
    latched = torch.zeros(samples, dtype=torch.bool)
    if method == "black_scholes":
        price = call_price(stats, *(float(p[name]) for name in PARAMETERS[6:]))
        best = price.nan_to_num(nan=float("inf")).argmin(1) if samples else torch.zeros(0, dtype=torch.int64)
        weights[torch.arange(samples), best] = 1
    else:
        m = _Moments(stats, numel)
        sums = _guided(m, method, p)
        phi = p["rescale"]
        if float(phi) != 0:
            sums = (
                sums * (phi * m.deviation(m.feature(0) + m.feature(1)) / m.deviation(sums) + 1 - phi)[:, None]
            )
        weights = sums - m.feature(0) - m.feature(1)
        if latch is not None:
            latched = _latched(m, p, latch)
    result = table.double().expand(samples, *table.shape).clone()
    for n, target in enumerate(targets):
        result[:, row, target] += weights[:, n]
    result[latched, : row + 1] = 0
    coefficients = result.to(table.dtype)
    return (coefficients,) if latch is None else (coefficients, latched.to(torch.uint8))


def dlpack_arguments(
    stats: Tensor, parameters: Tensor, table: Tensor, *, method: str, **options: Any
) -> dict[str, Any]:
    """The keyword arguments of the torch-free op for a call of the public one, without ``out``."""
    tensors = {"stats": stats, "parameters": parameters, "table": table}
    return {**tensors, "method": METHODS.index(method), **{k: v for k, v in options.items() if v is not None}}


def dlpack_outputs(stored: Sequence[Tensor], *_: Any, **__: Any) -> list[Tensor]:
    """``out`` of the torch-free op."""
    return list(stored)


def tolerance(stats: Tensor, parameters: Tensor, table: Tensor, **options: Any) -> dict[str, float]:
    """Relative to the largest coefficient: weights are found in float64."""
    results = reference(stats, parameters, table, **options)
    largest = results[0].double().nan_to_num(0, 0, 0).abs()
    return {"scale": float(largest.max()) if largest.numel() else 0.0, "terms": 64}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case
    from fastdiff.guidance.guidance_stats import reference as stats_of

    g = torch.Generator().manual_seed(seed)
    numel, samples = 60, 3

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def stats(features: int, spread: float = 0.3) -> Tensor:
        u = normal(samples, numel)
        c, *extras = (u + spread * normal(samples, numel) for _ in range(features - 1))
        return stats_of(u, c, extras)

    def parameters(steps: int = 0, **values: float) -> Tensor:
        given = {"scale": 7.3, "threshold": 2.0, "along_prediction": 1.0} | values
        row = torch.tensor([given.get(name, 0.0) for name in PARAMETERS], dtype=torch.float64)
        return row if not steps else row * torch.linspace(1, 1.1, steps, dtype=torch.float64)[:, None]

    def case(
        name: str, method: str, features: int = 2, *, sums: Tensor | None = None, dtype: torch.dtype = torch.float32,
        steps: int = 0, rows: int = 2, options: dict[str, Any] | None = None, **values: float,
    ) -> Case:  # fmt: skip
        lead = (steps,) if steps else ()
        columns = features + 5
        table = normal(*lead, rows, columns)
        more = {"step": torch.tensor(steps - 1)} if steps else {}
        call = {"method": method, "numel": numel, "row": min(rows - 1, 1), "targets": [*range(features)]}
        arguments = (stats(features) if sums is None else sums, parameters(steps, **values))
        return Case(name, (*arguments, table.to(dtype)), {**call, **more, **(options or {})})

    def prices(name: str, spots: Tensor, **values: float) -> Case:
        table = torch.zeros(2, 9)
        table[0, 0], table[1, -1] = -1.0, 2.5
        call = {
            "method": "black_scholes",
            "numel": numel,
            "row": 0,
            "targets": [*range(1, 1 + spots.shape[1])],
        }
        given = {"first": 100.0, "second": 0.02, "third": 0.1, "fourth": 20.0} | values
        return Case(name, (spots, parameters(0, **given), table), call)

    zero = stats(3)
    zero[0] = 0
    parallel = stats(2, spread=1e-5)
    latch = torch.tensor([0, 1, 0], dtype=torch.uint8)
    mixed = stats(2)
    mixed[2] = parallel[2]
    spots = 25 + 3 * normal(4, 3)
    return [
        case("cfg", "cfg", rescale=0.7),
        case("cfg of a step", "cfg", steps=5),
        case("cfg from c, float64", "cfg", dtype=torch.float64, from_cond=1.0),
        case("cfg, many rows", "cfg", rows=8, rescale=1.0),
        case("cfg of four, rescaled", "cfg", 4, first=2.8, second=-0.5, rescale=0.7),
        case("apg", "apg", first=0.3, second=1.5),
        case("apg without a limit", "apg", first=0.0),
        case("apg with momentum, from c", "apg", 3, first=-0.5, second=2.0, from_cond=1.0, rescale=0.5),
        case("zero_star", "zero_star"),
        case("zero_star of a step, rescaled", "zero_star", steps=2, rescale=0.3),
        case("tangential", "tangential"),
        case("tangential, nearly parallel", "tangential", sums=parallel, dtype=torch.float64),
        case("magnitude_aware", "magnitude_aware", first=8.0),
        case("magnitude_aware from c", "magnitude_aware", first=0.5, from_cond=1.0),
        case("norm_balanced", "norm_balanced", 3, first=0.33, second=3.0),
        case("norm_balanced at 0", "norm_balanced", 3, sums=zero, first=1.5, second=1.5, rescale=0.0),
        case("perpendicular", "perpendicular", 3, first=1.5),
        case("perpendicular of two", "perpendicular", 4, first=1.5, second=0.5, rescale=0.2),
        case("perpendicular at 0", "perpendicular", 3, sums=zero, first=1.5),
        case("latch", "cfg", sums=mixed, options={"latch": latch}, threshold=0.999),
        case("latch with a state", "cfg", 3, options={"latch": latch}, threshold=0.9, along_state=0.6),
        case("latch of a step", "cfg", steps=2, options={"latch": latch}, threshold=0.999),
        case("nan", "apg", sums=stats(2) * torch.tensor([[1.0], [float("nan")], [1.0]]), first=0.5, second=1.0),
        prices("black_scholes", spots),
        prices("black_scholes at expiry", spots, fourth=0.0),
        prices("black_scholes without a spot", torch.tensor([[-1.0, 0.0, 3.0], [30.0, float("nan"), 25.0]]).double()),
    ]  # fmt: skip
