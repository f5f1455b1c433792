"""Borda voting by self-certainty (arXiv 2502.18581), as `--voter` of scale-run and in `--voters` of scale-report."""


def borda(_question, chains):
    """the surest of K chains weighs the square root of K, the next one that of K - 1, and so on"""
    by_certainty = sorted(range(len(chains)), key=lambda place: chains[place].self_certainty or 0.0)
    ranks = {place: rank for rank, place in enumerate(by_certainty, start=1)}
    return [ranks[place] ** 0.5 for place in range(len(chains))]
