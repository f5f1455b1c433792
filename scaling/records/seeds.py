"""Which random numbers belong to which completion. Knows no tensors and no models.

Every (run seed, question, path, sample) has a stream of its own, a stable hash of these four and of nothing else: not of
rank, batch, order, N or M. Adding paths, samples or questions therefore leaves the earlier ones' random numbers as they are.
"""

from __future__ import annotations

import hashlib


def stream_seed(run_seed: int, question_id: str, path: int, sample: int) -> int:
    """Start of one completion's stream, 0 <= seed < 2**63 (so that it fits a signed 64-bit tensor)."""
    name = f"{run_seed}\x1f{question_id}\x1f{path}\x1f{sample}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def engine_seed(seed: int, number: int) -> int:
    """Of an engine whose completions have no streams of their own, 0 <= seed < 2**32. Another one for every number, be it of
    completions drawn before or of restarts: with the same one it would draw them again."""
    return stream_seed(seed, "engine", 0, number) % 2**32
