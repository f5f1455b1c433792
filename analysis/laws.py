"""Test-time scaling laws: what a method would score with more chains than were drawn, and how much its chains tell.

A question's chance of a right chain has a beta distribution over questions, and that of one of its paths a beta
distribution around it. Wrong chains fall on answers as in a Chinese restaurant, or give none. Fitted to a grid of N x M, it
says what a larger grid adds to what was found on the whole grid (arXiv 2510.05197 for pass@k without paths). The
correlation of chains gives the number of independent ones that are worth as much, and the vote of ever more chains ends
where the right answer is the most probable one (arXiv 2606.28661).

Questions are the unit, or clusters of them: the interval of an extrapolation is a bootstrap over these, in which the fit
takes one Newton step from its maximum. Several seeds are averaged within each question and taken as given. What a grid
cannot tell is None, and `Laws.missing` says why.

Shapes: Q questions, N paths, M samples, B resamples, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from analysis.clusters import Clusters
from analysis.estimators import whole_vote
from analysis.load import Ballots
from analysis.statistics import LEVEL, Interval, wilson
from scaling.records.intervals import ALIKE

Floats = NDArray[np.float64]

FACTORS = (2, 4, 8)  # sizes beyond the grid, in times its number of chains
PATHS, SAMPLES = "paths", "samples"
_RESAMPLES = 400
_CELLS = 750_000  # chains that are drawn to follow the vote of the law
_STICKS = 20  # wrong answers of a question that are told apart there; the others are rare
_STEP = 0.1  # of numeric derivatives, in logits
_SMALL = 1e-3  # correlations below this, or this near to 1, are held where they are


@dataclass(frozen=True)
class Law:
    """The fitted distribution of answers.

    Attributes:
        mean: the chance that a chain is right, mean over questions.
        between: the intraclass correlation of questions: the share of correctness' variance that lies between them.
        path: the correlation of a question's chains on the same path beyond it; 0 where paths are labels, or not known.
        concentration: of the Chinese restaurant of wrong answers: near 0 for a single one, large for ever new ones.
        silent: the share of wrong chains that give no answer.
    """

    mean: float
    between: float
    path: float
    concentration: float
    silent: float

    def none(self, n: int, m: int) -> float:
        """The chance that none of n paths x m samples is right."""
        return self._all_alike(n, m, wrong=True)

    def every(self, n: int, m: int) -> float:
        """The chance that each of n paths x m samples is right."""
        return self._all_alike(n, m, wrong=False)

    def _all_alike(self, n: int, m: int, *, wrong: bool) -> float:
        a, b = _beta(1 - self.mean if wrong else self.mean, self.between)
        if not self.path:
            return float(np.exp(special.betaln(a + n * m, b) - special.betaln(a, b)))
        chances, weights = _nodes(a, b, n * m)
        return float(weights @ np.exp(n * _log_path(chances, self.path, np.array([m]), m)[:, 0]))


@dataclass(frozen=True)
class Size:
    """A grid beyond the one that was drawn, and what it would score. Differences to the whole grid are the law's.

    Attributes:
        n: paths.
        m: samples of each.
        coverage: share of questions with a right chain.
        vote: share of questions that the flat vote gets right.
        every: share of questions of which all chains are right.
    """

    n: int
    m: int
    coverage: Interval
    vote: Interval
    every: Interval


@dataclass(frozen=True)
class HeldOut:
    """What half a grid says of the whole, and what the whole then shows: a check of the law on the run itself.

    Attributes:
        n: paths of the half.
        m: its samples of each path.
        coverage: of the whole grid by the law of the half, with its interval; and `coverage_found`.
        vote: likewise of the flat vote; and `vote_found`.
    """

    n: int
    m: int
    coverage: Interval
    coverage_found: float
    vote: Interval
    vote_found: float


@dataclass(frozen=True)
class Laws:
    """All figures on scaling of one method.

    Attributes:
        same_path: correlation of the correctness of two chains of one path, over all questions; None where M is 1.
        two_paths: the same of chains of two paths; None where N is 1.
        effective: how many chains, each of a question of its own, tell as much of the accuracy of a single chain as the
            N x M of one question.
        most_effective: its limit for ever more paths, or samples where N is 1.
        gap: coverage - flat vote of the whole grid: right answers that were found and not chosen.
        every: share of questions of which all N x M chains are right.
        law: the fitted one of the first seed.
        along: "paths" or "samples": what grows in `sizes`.
        sizes: larger grids; empty where they cannot be told.
        plateau: the flat vote of ever more chains along `along`.
        held_out: what half the grid says of the whole.
        missing: for each figure that is absent, why.
    """

    gap: Interval
    every: Interval
    same_path: Interval | None = None
    two_paths: Interval | None = None
    effective: Interval | None = None
    most_effective: Interval | None = None
    law: Law | None = None
    along: str | None = None
    sizes: tuple[Size, ...] = ()
    plateau: Interval | None = None
    held_out: HeldOut | None = None
    missing: dict[str, str] = field(default_factory=dict)


def laws(
    runs: Sequence[Ballots],
    *,
    mean: Callable[[Sequence[Floats]], Interval],
    clusters: Clusters | None = None,
    seed: int = 0,
) -> Laws:
    """The scaling figures of a method.

    Args:
        runs: the answers of its whole grid, one for each seed, on the same questions.
        mean: the mean of a share over questions and seeds with its interval, as of the report's other shares.
        clusters: of the questions; they are then what intervals draw.
        seed: of the resamples, and of the chains that are drawn from the law.
    """
    _, num_paths, num_samples = runs[0].codes.shape
    covered, votes, every = _whole(runs)
    found = Laws(gap=mean([a - b for a, b in zip(covered, votes, strict=True)]), every=mean(every))
    why = _unknown(runs)
    if why:
        names = ("same_path", "two_paths", "effective", "most_effective", "sizes", "plateau", "held_out")
        return replace(found, missing=dict.fromkeys(names, why))
    units = clusters or Clusters.single(len(covered[0]))
    weights = _resamples(units, seed)
    same, apart, effective, most = _correlations(runs, weights, units)
    found = replace(found, same_path=same, two_paths=apart, effective=effective, most_effective=most)
    along = PATHS if num_paths > 1 else SAMPLES
    grids = [(num_paths * by, num_samples) if along == PATHS else (num_paths, num_samples * by) for by in FACTORS]
    sizes, plateau, law = _extrapolated(runs, grids, weights, units.number, seed)
    missing = (
        {} if num_samples > 1 else {"same_path": "one sample of each path does not show how alike those of a path are"}
    )
    if num_paths == 1:
        missing["two_paths"] = "one path does not show how paths differ, so only more samples of it are told"
    if most is None:
        missing["most_effective"] = (
            "chains of a question may be no more alike than those of others, so there is no bound"
        )
    held = _held_out(runs, along, weights, units.number, seed)
    if held is None:
        missing["held_out"] = f"half of {num_paths} x {num_samples} chains are too few for a law"
    return replace(found, law=law, along=along, sizes=sizes, plateau=plateau, held_out=held, missing=missing)


def _whole(runs: Sequence[Ballots]) -> tuple[list[Floats], list[Floats], list[Floats]]:
    """For each seed [Q]: whether the whole grid has a right chain, votes rightly, and has right chains alone."""
    covered = [ballots.right.any(axis=(1, 2)).astype(float) for ballots in runs]
    every = [ballots.right.all(axis=(1, 2)).astype(float) for ballots in runs]
    return covered, [whole_vote(ballots) for ballots in runs], every


def _unknown(runs: Sequence[Ballots]) -> str | None:
    """Why a grid tells nothing of larger ones; None where it does."""
    questions, num_paths, num_samples = runs[0].codes.shape
    if questions < 2:
        return "one question tells nothing of others"
    if num_paths * num_samples == 1:
        return "one chain a question does not tell hard questions from chance"
    if not all(ballots.right.any() for ballots in runs):
        return "no chain is right"
    if all(ballots.right.all() for ballots in runs) or any(ballots.right.all() for ballots in runs):
        return "every chain is right"
    return None


def _resamples(units: Clusters, seed: int) -> Floats:
    """[1 + B, Q], how much each question weighs, with a sum of 1: all alike first, then as clusters were drawn."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(units.number, np.full(units.number, 1 / units.number), _RESAMPLES)
    times = np.vstack([np.ones(units.number), drawn])[:, units.of]
    weights: Floats = times / times.sum(axis=1, keepdims=True)
    return weights


def _share(values: Floats, units: int) -> Interval:
    """As `_interval`. Where no question has it, or all have it, the interval is that of the share of the whole grid.

    It is then too wide rather than too short: larger grids have no fewer questions with a right chain, and no more with
    right chains alone.
    """
    value = float(values[0])
    return wilson(int(value) * units, units) if value in (0.0, 1.0) else _interval(values)


def _interval(values: Floats) -> Interval:
    """The first of 1 + B values, with percentiles of the others; no interval where these are all alike."""
    low, high = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(values[0])
    return Interval(value, float(low), float(high)) if high - low > ALIKE else Interval(value, None, None)


# ---- what chains tell


def _correlations(runs: Sequence[Ballots], weights: Floats, units: Clusters) -> tuple[Interval | None, ...]:
    """`Laws.same_path` to `Laws.most_effective`.

    The variance of the mean of n x m chains of a question, over questions, is v (1 + (m - 1) r + (n - 1) m s) / (n m), where
    v is that of one chain, r the correlation of two chains of a path, and s that of chains of two paths.
    """
    _, n, m = runs[0].codes.shape
    same, apart = np.mean([_correlation(ballots, weights, units) for ballots in runs], axis=0)
    lost = 1 + (m - 1) * same * (m > 1) + (n - 1) * m * apart * (n > 1)
    last = apart if n > 1 else same
    with np.errstate(divide="ignore"):
        most = np.where(last > 0, 1 / np.maximum(last, 1e-300), np.inf)
    return (
        _interval(same) if m > 1 else None,
        _interval(apart) if n > 1 else None,
        _interval(n * m / np.maximum(lost, 1.0)),  # no more than were drawn: a negative correlation is chance
        _interval(most) if np.isfinite(most).all() else None,
    )


def _correlation(ballots: Ballots, weights: Floats, units: Clusters) -> tuple[Floats, Floats]:
    """The correlations of two chains of a path, and of two paths, [1 + B] each; 0 where there are no two."""
    _, n, m = ballots.codes.shape
    counts = ballots.right.sum(axis=2).astype(float)
    total, squares = counts.sum(axis=1), (counts**2).sum(axis=1)
    share = total / (n * m)
    mean = weights @ share
    # a square of a mean over questions is too large by the variance of that mean
    square = mean**2 - _inflation(share, units) * (weights @ share**2 - mean**2) / max(1, len(share) - 1)
    variance = np.maximum(mean - square, 1e-12)
    same = (weights @ ((squares - total) / (n * m * max(1, m - 1))) - square) / variance
    apart = (weights @ ((total**2 - squares) / (m * m * n * max(1, n - 1))) - square) / variance
    return same, apart


def _inflation(values: Floats, units: Clusters) -> float:
    """The variance of a mean over questions, in times that of independent ones; 1 without clusters. values: [Q]."""
    residuals = values - values.mean()
    independent = float((residuals**2).sum()) * len(values) / (len(values) - 1)
    own = float((units.sums(residuals) ** 2).sum()) * units.number / (units.number - 1)
    return own / independent if independent else 1.0


# ---- the fit


@dataclass(frozen=True, eq=False)
class _Counts:
    """What the law is fitted to.

    Attributes:
        rows: [R, M + 1], how many paths of a question have 0 .. M right chains, each different row once. Where N or M is 1,
            all chains count as samples of one path.
        times: [R], questions with this row.
        place: [Q], the row of each question.
        given: [Q], wrong chains with an answer.
        different: [Q], how many different answers these give.
        unanswered: [Q], chains without an answer.
        known: log-likelihoods of the rows by parameters, as derivatives ask for the same ones again.
    """

    rows: Floats
    times: Floats
    place: NDArray[np.int64]
    given: Floats
    different: Floats
    unanswered: Floats
    known: dict[tuple[float, ...], Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, ballots: Ballots) -> _Counts:
        questions, n, m = ballots.codes.shape
        size = m if min(n, m) > 1 else n * m
        right = ballots.right.reshape(questions, -1, size).sum(axis=2)
        each = (right[:, :, None] == np.arange(size + 1)).sum(axis=1)
        rows, place, times = np.unique(each, axis=0, return_inverse=True, return_counts=True)
        wrong = ballots.counts().sum(axis=1).astype(float)
        if ballots.verdicts.shape[1]:
            wrong *= ~ballots.verdicts
        unanswered = (ballots.codes < 0).sum(axis=(1, 2)).astype(float)
        return cls(
            rows.astype(float),
            times.astype(float),
            place.ravel(),
            wrong.sum(axis=1),
            (wrong > 0).sum(axis=1).astype(float),
            unanswered,
        )

    @property
    def with_paths(self) -> bool:
        """Whether paths are told apart."""
        return bool(self.rows[0].sum() > 1)


def fit(ballots: Ballots) -> Law:
    """The law of greatest likelihood. Some chains must be right and some wrong, and a question have two or more."""
    return _fit(_Counts.of(ballots), float(ballots.right.mean()))


def _fit(counts: _Counts, mean: float) -> Law:
    """As `fit`. mean: the share of chains that are right."""
    starts = [_logit(mean), _logit(0.3)] + ([_logit(0.1)] if counts.with_paths else [])

    def cost(x: Floats) -> float:
        return -float(counts.times @ _log_likelihood(_law_at(x), counts.rows))

    best = optimize.minimize(cost, starts, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4, "maxiter": 400})
    law = _law_at(best.x)
    path = law.path if law.path > _SMALL else 0.0
    return replace(law, path=path, **_wrong_answers(counts))


def _law_at(x: Floats) -> Law:
    """The law with these parameters, two or three logits."""
    mean, between, *path = special.expit(np.clip(x, -9, 9)).tolist()
    return Law(mean, between, path[0] if path else 0.0, 1.0, 0.0)


def _log_likelihood(law: Law, rows: Floats) -> Floats:
    """The log-likelihood of each row but for a constant, [R]. rows: see `_Counts`."""
    a, b = _beta(law.mean, law.between)
    size = rows.shape[1] - 1
    right = np.arange(size + 1)
    chains = int(rows[0].sum()) * size
    if not law.path:
        total = rows @ right
        ends: Floats = special.betaln(a + total, b + chains - total) - special.betaln(a, b)
        return ends
    chances, weights = _nodes(a, b, chains)
    inside = rows @ _log_path(chances, law.path, right, size).T
    summed: Floats = special.logsumexp(inside, axis=1, b=weights)
    return summed


def _log_path(chances: Floats, path: float, right: NDArray[np.int64], m: int) -> Floats:
    """Log of the chance that these of m samples of a path are right, in a given order, [G, len(right)]. chances: [G]."""
    spread = 1 / path - 1
    a, b = chances[:, None] * spread, (1 - chances[:, None]) * spread
    log: Floats = special.betaln(a + right, b + m - right) - special.betaln(a, b)
    return log


def _nodes(a: float, b: float, chains: int) -> tuple[Floats, Floats]:
    """Nodes in (0, 1) and weights, with a sum of 1, that integrate over a beta distribution; enough for so many chains."""
    number = min(200, 32 + int(4 * chains**0.5))
    if a + b > 100:  # too narrow for the quadrature's numbers, and so smooth that quantiles do as well
        return special.betaincinv(a, b, (np.arange(number) + 0.5) / number), np.full(number, 1 / number)
    nodes, weights = special.roots_jacobi(number, b - 1, a - 1)
    return ((nodes + 1) / 2).clip(1e-12, 1 - 1e-12), weights / weights.sum()


def _beta(mean: float, correlation: float) -> tuple[float, float]:
    """The parameters of the beta distribution with this mean, of which two draws from one value correlate so."""
    spread = 1 / correlation - 1
    return mean * spread, (1 - mean) * spread


def _logit(share: float) -> float:
    return float(special.logit(np.clip(share, 1e-4, 1 - 1e-4)))


def _wrong_answers(counts: _Counts) -> dict[str, float]:
    """`Law.concentration` and `Law.silent`."""
    wrong = counts.given.sum() + counts.unanswered.sum()
    concentration = 1.0
    if counts.given.sum():
        best = optimize.minimize_scalar(
            lambda x: -float(_ewens(np.exp(x), counts.given, counts.different).sum()), bounds=(-7, 7), method="bounded"
        )
        concentration = float(np.exp(best.x))
    return {"concentration": concentration, "silent": float(counts.unanswered.sum() / wrong) if wrong else 0.0}


def _ewens(concentration: float, given: Floats, different: Floats) -> Floats:
    """Log-likelihood of so many different answers among those that are given (Ewens 1972), but for a constant, [Q]."""
    ends = special.gammaln(concentration + given) - special.gammaln(concentration)
    log: Floats = different * np.log(concentration) - ends
    return log


# ---- beyond the grid


def _free(law: Law) -> list[str]:
    """The parameters that the data move: those that do not lie at an end of their range."""
    names = [name for name in ("mean", "between", "path", "silent") if _SMALL < getattr(law, name) < 1 - _SMALL]
    return names + (["concentration"] if 2e-3 < law.concentration < 500 else [])


def _moved(law: Law, name: str, by: float) -> Law:
    """The law with one parameter moved, in logits, or in logarithms where it is the concentration."""
    value = getattr(law, name)
    return replace(
        law,
        **{name: value * np.exp(by) if name == "concentration" else float(special.expit(special.logit(value) + by))},
    )


def _scores(law: Law, counts: _Counts, names: Sequence[str]) -> Floats:
    """The derivative of each question's log-likelihood by each parameter, [Q, P]."""
    up, down = (np.array([_each(_moved(law, name, by), counts) for name in names]) for by in (_STEP, -_STEP))
    slope: Floats = (up - down).T / (2 * _STEP)
    return slope


def _each(law: Law, counts: _Counts) -> Floats:
    """The log-likelihood of each question but for a constant, [Q]."""
    at = tuple(round(value, 12) for value in (law.mean, law.between, law.path))
    if at not in counts.known:
        counts.known[at] = _log_likelihood(law, counts.rows)
    log = counts.known[at][counts.place] + _ewens(law.concentration, counts.given, counts.different)
    if 0 < law.silent < 1:
        log = log + counts.unanswered * np.log(law.silent) + counts.given * np.log(1 - law.silent)
    return log


def _steps(law: Law, counts: _Counts, weights: Floats) -> tuple[list[str], Floats]:
    """The parameters that vary, and by how much one Newton step moves them in each resample, [1 + B, P]; the first is 0."""
    names = _free(law)
    if not names:
        return names, np.zeros((len(weights), 0))
    up, down = (
        np.array([_scores(_moved(law, name, by), counts, names).sum(axis=0) for name in names])
        for by in (_STEP, -_STEP)
    )
    curvature = (down - up) / (2 * _STEP)
    scores = _scores(law, counts, names)
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    outer = ((scores @ vectors) ** 2).sum(axis=0)
    inverse = (vectors / np.maximum(values, 0.25 * outer + 1e-9)) @ vectors.T  # never flatter than scores allow
    steps: Floats = (len(scores) * (weights - weights[0]) @ scores) @ inverse
    return names, steps.clip(-3, 3)


def _extrapolated(
    runs: Sequence[Ballots], grids: Sequence[tuple[int, int]], weights: Floats, units: int, seed: int
) -> tuple[tuple[Size, ...], Interval, Law]:
    """The grids beyond the whole one, the plateau of the vote, and the law of the first seed.

    Args:
        runs: one for each seed.
        grids: the larger ones.
        weights: the resamples.
        units: number of clusters, or of questions.
        seed: of the chains that are drawn from the law.
    """
    _, n, m = runs[0].codes.shape
    parts, fitted = [], []
    for ballots, covered, voted, every in zip(runs, *_whole(runs), strict=True):
        counts = _Counts.of(ballots)
        law = _fit(counts, float(ballots.right.mean()))
        fitted.append(law)
        names, steps = _steps(law, counts, weights)
        gains = _gains(law, names, [(n, m), *grids], seed, steps)
        cells = len(grids)
        missed = (1 - weights @ covered)[:, None] * np.exp(np.minimum(gains[:, :cells], 0))
        all_right = (weights @ every)[:, None] * np.exp(np.minimum(gains[:, cells : 2 * cells], 0))
        votes = ((weights @ voted)[:, None] + gains[:, 2 * cells :]).clip(0, 1)
        parts.append(np.hstack([1 - missed, all_right, votes]))
    values = np.mean(parts, axis=0)
    cells = len(grids)
    sizes = tuple(
        Size(*grid, *(_share(values[:, place], units) for place in (number, 2 * cells + number, cells + number)))
        for number, grid in enumerate(grids)
    )
    return sizes, _share(values[:, -1], units), fitted[0]


def _gains(law: Law, names: Sequence[str], grids: Sequence[tuple[int, int]], seed: int, steps: Floats) -> Floats:
    """What larger grids change, by the law, for each resample, linear in its parameters.

    Args:
        law: the fitted one.
        names: its parameters that vary.
        grids: the whole grid, then C larger ones.
        seed: of the chains that are drawn.
        steps: by how much the parameters move, [1 + B, P].

    Returns:
        [1 + B, 3 C + 1]: changes of the logarithms of the chances of no right chain and of right chains alone, then of the
        vote's accuracy, whose last column is for ever more chains.
    """

    def at(moved: Law, cells: int = _CELLS // 5) -> Floats:
        none, every = (np.log(np.maximum([of(*grid) for grid in grids], 1e-300)) for of in (moved.none, moved.every))
        votes = _votes(moved, grids, seed, cells)
        return np.concatenate([none[1:] - none[0], every[1:] - every[0], votes[1:] - votes[0]])

    slopes = [(at(_moved(law, name, _STEP)) - at(_moved(law, name, -_STEP))) / (2 * _STEP) for name in names]
    gains: Floats = at(law, _CELLS) + (steps @ np.array(slopes) if slopes else 0 * steps[:, :1])
    return gains


def _votes(law: Law, grids: Sequence[tuple[int, int]], seed: int, cells: int) -> Floats:
    """The share of right votes over each grid, and over ever more chains, [len(grids) + 1]: of questions that are drawn.

    The same random numbers serve every law, so that differences come from the laws and not from chance.

    Args:
        law: the distribution of answers.
        grids: n x m, the largest last.
        seed: of the random numbers.
        cells: how many chains are drawn.
    """
    num_paths, num_samples = grids[-1]
    questions = int(np.clip(cells // (num_paths * num_samples), 400, 6000))
    rng = np.random.default_rng(seed)
    a, b = _beta(law.mean, law.between)
    own = special.betaincinv(a, b, (rng.permutation(questions) + 0.5) / questions).clip(1e-9, 1 - 1e-9)
    sticks = _sticks(rng.random((questions, _STICKS)), law.concentration)
    uniform = rng.random((questions, num_paths))
    paths = np.broadcast_to(own[:, None], uniform.shape)
    if law.path:
        paths = special.betaincinv(*_beta_of(paths, law.path), uniform)
    shape = (questions, num_paths, num_samples)
    right = rng.random(shape, dtype=np.float32) < paths[:, :, None]
    says = rng.random(shape, dtype=np.float32) >= law.silent
    place, which = rng.random(shape, dtype=np.float32), np.ones(shape, dtype=np.int64)
    for bound in sticks.cumsum(axis=1).T:
        which += place > bound[:, None, None]
    codes = np.where(right, 0, np.where(says & (which <= _STICKS), which, _STICKS + 1))
    votes = [_plurality(codes[:, :n, :m].reshape(questions, -1)) for n, m in grids]
    grows_in_paths = num_paths > grids[0][0]
    limit = own if grows_in_paths else paths.mean(axis=1)
    strongest = (1 - limit) * (1 - law.silent) * sticks.max(axis=1)
    return np.array([*votes, (limit > strongest).mean()])


def _beta_of(means: Floats, correlation: float) -> tuple[Floats, Floats]:
    spread = 1 / correlation - 1
    return means * spread, (1 - means) * spread


def _sticks(uniform: Floats, concentration: float) -> Floats:
    """Shares of the wrong answers of each question, in the order of their discovery; both [Q, J]."""
    broken = 1 - (1 - uniform) ** (1 / concentration)
    left = np.cumprod(1 - broken, axis=1)
    shares: Floats = broken * np.hstack([np.ones((len(uniform), 1)), left[:, :-1]])
    return shares


def _plurality(codes: NDArray[np.int64]) -> float:
    """The share of right votes; answer 0 is right, the last number is no answer, and ties go to each answer alike."""
    width = _STICKS + 2
    flat = (codes + width * np.arange(len(codes))[:, None]).ravel()
    counts = np.bincount(flat, minlength=width * len(codes)).reshape(-1, width)[:, :-1]
    most = counts.max(axis=1)
    tied = (counts == most[:, None]).sum(axis=1)
    return float(np.where((counts[:, 0] == most) & (most > 0), 1 / tied, 0).mean())


def _held_out(runs: Sequence[Ballots], along: str, weights: Floats, units: int, seed: int) -> HeldOut | None:
    """What the law of the first half of the paths, or of the samples of one path, says of the whole grid.

    Of an odd number it is the smaller half: of 5 paths the first 2 say what all 5 show.

    None where a half has fewer than two chains a question, or nothing to fit.
    """
    _, n, m = runs[0].codes.shape
    half_n, half_m = (n // 2, m) if along == PATHS else (n, m // 2)
    if half_n * half_m < 2 or (along == PATHS and half_n < 2):
        return None
    halves = [replace(one, codes=one.codes[:, :half_n, :half_m]) for one in runs]
    if _unknown(halves):
        return None
    sizes, _, _ = _extrapolated(halves, [(n, m)], weights, units, seed)
    covered, votes, _ = (float(np.mean(values)) for values in _whole(runs))
    return HeldOut(half_n, half_m, sizes[0].coverage, covered, sizes[0].vote, votes)
