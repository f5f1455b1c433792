"""Gives every completion a random stream of its own. Knows no tensors and no models.

The seed of a stream is a stable hash of (run seed, question id, path, sample) and of nothing else: not of rank, batch,
order, N or M. Adding paths, samples or questions therefore never changes the random numbers of the others.
"""

from __future__ import annotations

import hashlib


def stream_seed(run_seed: int, question_id: str, path: int, sample: int) -> int:
    """The seed of one completion's random stream.

    Args:
        run_seed: the seed of the run.
        question_id: id of the question.
        path: number of the latent path, from 0.
        sample: number of the sample on that path, from 0.

    Returns:
        0 <= seed < 2**63, so that it fits a signed 64-bit tensor.
    """
    name = f"{run_seed}\x1f{question_id}\x1f{path}\x1f{sample}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def engine_seed(seed: int, number: int) -> int:
    """The seed of an engine that cannot give every completion a stream of its own.

    Args:
        seed: the seed of the run.
        number: is to differ between calls of one run, such as the number of completions drawn before. With the same seed,
            the engine would draw the same completions again.

    Returns:
        0 <= seed < 2**32.
    """
    return stream_seed(seed, "engine", 0, number) % 2**32
