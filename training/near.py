"""Near-duplicates: MinHash over five-letter shingles (Broder, 1997), banded (Indyk and Motwani, 1998), then the exact overlap."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
BANDS, ROWS = 16, 4
"""16 bands of 4 rows find a pair of overlap 0.8 with probability 1 - (1 - 0.8^4)^16 = 0.9998."""
PRIME = (1 << 31) - 1


def near_duplicates(texts: Sequence[str], owners: Sequence[str], similar: float) -> set[int]:
    """Indexes of texts that overlap an earlier text of another owner by `similar` or more (Jaccard over shingles)."""
    shingles = [_shingles(text) for text in texts]
    found: set[int] = set()
    for early, late in sorted(_candidates(shingles, owners)):
        if early not in found and _jaccard(shingles[early], shingles[late]) >= similar:
            found.add(late)
    return found


def _shingles(text: str) -> frozenset[int]:
    padded = f" {text} "
    return frozenset(zlib.crc32(padded[start : start + SHINGLE].encode()) for start in range(max(1, len(padded) - SHINGLE + 1)))


def _jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    return len(left & right) / len(left | right)


def _candidates(shingles: Sequence[frozenset[int]], owners: Sequence[str]) -> set[tuple[int, int]]:
    """Pairs (earlier, later) of different owners that share a band of their signatures."""
    signatures = np.stack([_signature(each) for each in shingles]) if shingles else np.zeros((0, BANDS * ROWS), np.int64)
    return {pair for band in range(BANDS) for pair in _same_band(signatures[:, band * ROWS : (band + 1) * ROWS], owners)}


def _same_band(band: NDArray[np.int64], owners: Sequence[str]) -> Iterator[tuple[int, int]]:
    buckets: dict[bytes, list[int]] = defaultdict(list)
    for index, row in enumerate(band):
        buckets[row.tobytes()].append(index)
    for bucket in buckets.values():
        for position, late in enumerate(bucket):
            yield from ((early, late) for early in bucket[:position] if owners[early] != owners[late])


_FACTORS = np.random.default_rng(0).integers(1, PRIME, size=(2, BANDS * ROWS))


def _signature(shingles: frozenset[int]) -> NDArray[np.int64]:
    """The smallest of (a x + b) mod p over the shingles x, for each of the 64 (a, b)."""
    values = np.fromiter(shingles, np.int64, len(shingles)) % PRIME
    hashes: NDArray[np.int64] = (values[:, None] * _FACTORS[0] + _FACTORS[1]) % PRIME
    return np.asarray(hashes.min(axis=0), np.int64)
