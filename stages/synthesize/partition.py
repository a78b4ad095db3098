"""Documents to partitions, by clusters of near-duplicates and before any question is written."""

from collections.abc import Collection, Sequence

from stages.core import shingles
from stages.core.records import Assignment, Document, Partition, identify


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
    """The cluster of each document: the smallest id among those linked by near-duplicates."""
    ordered = sorted(documents, key=lambda document: document.id)
    roots = list(range(len(ordered)))

    def root(place: int) -> int:
        while roots[place] != place:
            place = roots[place]
        return place

    texts = [document.text for document in ordered]
    for other, place in shingles.pairs(len(texts), texts.__getitem__, seed, threshold):
        first, second = sorted((root(place), root(other)))
        roots[second] = first
    return {document.id: ordered[root(place)].id for place, document in enumerate(ordered)}
