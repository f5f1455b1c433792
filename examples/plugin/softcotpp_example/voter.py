"""A voter that prefers short chains."""


def concise(question, chains):
    """a chain weighs one over its length in tokens"""
    return [1 / max(1, chain.num_tokens) for chain in chains]
