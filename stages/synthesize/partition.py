"""Documents to partitions, by clusters of near-duplicates and before any question is written."""

import re
from collections.abc import Collection, Sequence

from rensa import RMinHash, RMinHashLSH  # type: ignore[import-untyped]

from stages.core.records import Assignment, Document, Partition, identify

SHINGLE_WORDS = 5
NUM_PERMUTATIONS = 128
NUM_BANDS = 32
"""Bands of four rows find a pair of similarity 0.5 in 87 % of cases, one of 0.7 in 99.98 %."""


def assign(
    documents: Sequence[Document],
    seed: int,
    validation_share: float,
    test_share: float,
    duplicate_threshold: float,
    held: Collection[str] = (),
    learnt: Collection[str] = (),
) -> list[Assignment]:
    """A partition for each document, in the documents' order.

    A cluster with one of the documents that are `held` is tested on, and one with one of those
    that are `learnt` is trained on. Any other goes where its hash says, so that an edit of one
    page moves no other. Of three clusters or more, the one with the lowest hash is tested on,
    unless any is held, the one with the highest validates and the one in the middle is trained
    on, whatever the shares; where that one is held, another takes its place. A smaller site is
    trained on as a whole.
    """
    clusters = cluster(documents, seed, duplicate_threshold)
    names = sorted(set(clusters.values()), key=lambda name: _hash(seed, name))
    tested = {clusters[id] for id in held if id in clusters}
    kept = {clusters[id] for id in learnt if id in clusters} - tested
    free = [name for name in names if name not in tested]
    trained = names[len(names) // 2 :][:1]
    if tested.intersection(trained):
        trained = free[(len(free) - 1) // 2 :][:1]
    others = [name for name in free if name not in trained and name not in kept]
    validated = others[-1:]
    partitions: dict[str, Partition] = {}
    for place, name in enumerate(names):
        share = _hash(seed, name)
        if name in tested:
            partitions[name] = "test"
        elif len(names) < 3 or name in trained or name in kept:
            partitions[name] = "train"
        elif name in validated:
            partitions[name] = "validation"
        elif share < test_share or (place == 0 and not tested):
            partitions[name] = "test"
        elif share >= 1 - validation_share:
            partitions[name] = "validation"
        else:
            partitions[name] = "train"
    return [
        Assignment(
            document_id=document.id,
            cluster_id=clusters[document.id],
            partition=partitions[clusters[document.id]],
        )
        for document in documents
    ]


def _hash(seed: int, name: str) -> float:
    """From 0 to 1."""
    return int(identify(seed, name), 16) / 16**16


def cluster(documents: Sequence[Document], seed: int, threshold: float) -> dict[str, str]:
    """The cluster of each document: the smallest id among those linked by near-duplicates.

    MinHash finds the pairs that may be alike; the Jaccard index of their shingles decides.
    """
    ordered = sorted(documents, key=lambda document: document.id)
    shingles = [_shingles(document.text) for document in ordered]
    # Equal texts have equal sets, and so equal sketches, wherever and whenever they are made.
    sketches = RMinHash.from_token_sets(
        [sorted(words) for words in shingles], NUM_PERMUTATIONS, seed
    )
    seen = RMinHashLSH(threshold, NUM_PERMUTATIONS, NUM_BANDS)
    roots = list(range(len(ordered)))

    def root(place: int) -> int:
        while roots[place] != place:
            place = roots[place]
        return place

    for place, sketch in enumerate(sketches):
        for other in sorted(seen.query(sketch)):
            if _jaccard(shingles[place], shingles[other]) >= threshold:
                first, second = sorted((root(place), root(other)))
                roots[second] = first
        seen.insert(place, sketch)
    return {document.id: ordered[root(place)].id for place, document in enumerate(ordered)}


def _shingles(text: str) -> frozenset[str]:
    words = re.findall(r"\w+", text.casefold())
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[n : n + SHINGLE_WORDS]) for n in range(last))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
