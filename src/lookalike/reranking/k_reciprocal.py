"""Jaccard similarities of k-reciprocal neighbours, sparse.

Z. Zhong, L. Zheng, D. Cao and S. Li, Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017.

The result is that of the dense algorithm: it uses no more of a row than its k1 nearest, and two images without a shared
neighbour have the similarity 0. As in the authors' code, an image is its own first neighbour, and the weights of its
neighbours sum to 1; the distance in the weights is `1 - cosine` instead of one that is scaled by the largest of all.
The neighbours of a neighbour are added if at least two thirds of them are shared, as in the paper; the
authors' code needs more than two thirds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lookalike._top_k import Ints
from lookalike.reranking.neighbours import SparseRows, Values, blocks, identity, nearest
from lookalike.reranking.steps import KReciprocal
from lookalike.types import Vectors

_QUERIES = 32  # whose shared neighbours are in memory at once


class JaccardSimilarities:
    """The similarities of nodes, of which the first `gallery` are gallery items, to all gallery items."""

    def __init__(self, nodes: Vectors, gallery: int, step: KReciprocal) -> None:
        self._gallery = gallery
        self._weights = _weights(nodes, step)
        by_node = self._weights.transposed(len(nodes))
        among = by_node.columns < gallery
        starts = np.concatenate([[0], np.cumsum(among)])[by_node.starts]
        self._gallery_by_neighbour = SparseRows(starts, by_node.columns[among], by_node.values[among])

    def rows(self, nodes: Ints) -> Values:
        """Return the similarities `(n, gallery)` of these nodes."""
        shared = np.empty((len(nodes), self._gallery))
        for start in range(0, len(nodes), _QUERIES):
            part = nodes[start : start + _QUERIES]
            position, neighbour, weight = self._weights.entries(part)
            entry, item, item_weight = self._gallery_by_neighbour.entries(neighbour)
            cells = position[entry] * self._gallery + item
            sums = np.bincount(cells, np.minimum(weight[entry], item_weight), len(part) * self._gallery)
            shared[start : start + len(part)] = sums.reshape(len(part), self._gallery)
        similarities: Values = shared / (2 - shared)  # the weights of each image sum to 1
        return similarities


def _weights(nodes: Vectors, step: KReciprocal) -> SparseRows:
    """Return the weights of the reciprocal neighbours of each node, averaged over its k2 nearest."""
    count = len(nodes)
    others, _ = nearest(nodes, nodes, min(step.k1, count - 1), identity(count))
    neighbours = np.concatenate([np.arange(count)[:, None], others], axis=1)
    node, neighbour = _reciprocal_neighbours(neighbours, round(step.k1 / 2) + 1)
    cosines = np.empty(len(node))
    for part in blocks(len(node), nodes.shape[1]):
        pairs = nodes[node[part]].astype(np.float64), nodes[neighbour[part]].astype(np.float64)
        cosines[part] = np.einsum("ij,ij->i", *pairs)
    similarity = np.exp(cosines - 1)
    weights = SparseRows.of((count, count), node, neighbour, similarity / np.bincount(node, similarity, count)[node])
    near = neighbours[:, : step.k2]
    position, column, value = weights.entries(near.ravel())
    return SparseRows.of((count, count), position // near.shape[1], column, value / near.shape[1])


def _reciprocal_neighbours(neighbours: Ints, half: int) -> tuple[Ints, Ints]:
    """Return the pairs of nodes and their k-reciprocal neighbours, expanded by those of similar neighbours.

    The reciprocal neighbours of a neighbour, within its `half` nearest, are added if at least two thirds of them are
    k-reciprocal neighbours of the node.
    """
    count, depth = neighbours.shape
    mutual = _mutual(neighbours)
    near, mutual_near = neighbours[:, :half], _mutual(neighbours[:, :half])
    pairs = []
    for block in blocks(count, depth * depth * near.shape[1]):
        candidates, valid = neighbours[block], mutual[block]
        pairs.append(block[np.nonzero(valid)[0]] * count + candidates[valid])
        added, added_valid = near[candidates], mutual_near[candidates]
        members = np.where(valid, candidates, -1)[:, None, None, :]
        shared = ((added[..., None] == members).any(axis=3) & added_valid).sum(axis=2)
        similar = valid & (3 * shared >= 2 * added_valid.sum(axis=2))
        added_valid &= similar[:, :, None]
        pairs.append(block[np.nonzero(added_valid)[0]] * count + added[added_valid])
    distinct = np.unique(np.concatenate(pairs))
    return distinct // count, distinct % count


def _mutual(neighbours: Ints) -> npt.NDArray[np.bool_]:
    """Return `(n, k)`, whether each neighbour of a node has the node among its own k nearest."""
    mutual = np.empty(neighbours.shape, dtype=bool)
    for block in blocks(len(neighbours), neighbours.shape[1] ** 2):
        mutual[block] = (neighbours[neighbours[block]] == block[:, None, None]).any(axis=2)
    return mutual
