"""The steps of a re-ranking, as records: each holds its parameters, which are checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from lookalike.errors import OptionError

MAX_NEIGHBOURS = 1000  # of a step; more make its lists large and gain nothing
MAX_TEMPERATURE = 1000.0


@dataclass(frozen=True)
class ClassSimilarity:
    """Joins each embedding with the probabilities of the training classes.

    The new cosine is `(1 - weight) * cosine + weight * b`. b is the Bhattacharyya coefficient of the probabilities of
    the training classes, `softmax(temperature * cosines to the class means)`. For test classes that are training
    classes.

    Attributes:
        temperature: factor of the cosines in the softmax, above 0.
        weight: from 0 to 1.

    """

    title: ClassVar[str] = "class similarity"
    transductive: ClassVar[bool] = False
    temperature: float = 20.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        _require_between("temperature", self.temperature, 0, MAX_TEMPERATURE)
        _require_between("weight", self.weight, 0, 1)


@dataclass(frozen=True)
class GalleryAugmentation:
    """Replaces each gallery item by the weighted mean of itself and its nearest gallery items.

    DBA in papers (Gordo et al. 2017); the weights `cosine ** alpha` are those of Radenović et al. 2018.

    Attributes:
        k: number of nearest items.
        alpha: exponent, from 0; 0 weights them equally.

    """

    title: ClassVar[str] = "gallery augmentation"
    transductive: ClassVar[bool] = True
    k: int = 5
    alpha: float = 3.0

    def __post_init__(self) -> None:
        _require_neighbours("k", self.k)
        _require_between("alpha", self.alpha, 0, 100)


@dataclass(frozen=True)
class QueryExpansion:
    """Replaces each query by the weighted mean of itself and its first hits: α query expansion, Radenović et al. 2018.

    Attributes:
        k: number of hits.
        alpha: exponent of the weights `cosine ** alpha`, from 0; 0 weights them equally.

    """

    title: ClassVar[str] = "query expansion"
    transductive: ClassVar[bool] = False
    k: int = 3
    alpha: float = 3.0

    def __post_init__(self) -> None:
        _require_neighbours("k", self.k)
        _require_between("alpha", self.alpha, 0, 100)


@dataclass(frozen=True)
class SimilarityNormalization:
    """Subtracts from each cosine `weight` times the mean cosine of the gallery item to its k nearest queries.

    Gallery items that are near to everything lose their advantage. With a weight of 0.5 the order is that of
    cross-domain similarity local scaling (Conneau et al. 2018).

    Attributes:
        k: number of nearest queries.
        weight: from 0 to 1.

    """

    title: ClassVar[str] = "similarity normalization"
    transductive: ClassVar[bool] = True
    k: int = 10
    weight: float = 0.5

    def __post_init__(self) -> None:
        _require_neighbours("k", self.k)
        _require_between("weight", self.weight, 0, 1)


@dataclass(frozen=True)
class KReciprocal:
    """Mixes the cosine with the Jaccard similarity of the neighbours of both images. Zhong et al. 2017.

    The new similarity is `(1 - weight) * cosine + weight * jaccard`. Neighbours are searched among queries and gallery.

    Attributes:
        k1: neighbours from which the reciprocal ones are taken.
        k2: nearest images, with the image itself, whose neighbours are averaged.
        weight: from 0 to 1; the paper's λ is `1 - weight`.

    """

    title: ClassVar[str] = "k-reciprocal"
    transductive: ClassVar[bool] = True
    k1: int = 20
    k2: int = 6
    weight: float = 0.7

    def __post_init__(self) -> None:
        _require_neighbours("k1", self.k1)
        _require_neighbours("k2", self.k2)
        _require_between("weight", self.weight, 0, 1)


Step = ClassSimilarity | GalleryAugmentation | QueryExpansion | SimilarityNormalization | KReciprocal


@dataclass(frozen=True)
class Reranking:
    """The steps of a re-ranking, in the order in which they are applied; None skips a step.

    `dataclasses.asdict` gives its JSON structure, `lookalike._records.read_record` reads it.
    """

    class_similarity: ClassSimilarity | None = None
    gallery_augmentation: GalleryAugmentation | None = None
    query_expansion: QueryExpansion | None = None
    similarity_normalization: SimilarityNormalization | None = None
    k_reciprocal: KReciprocal | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that are applied."""
        return tuple(step for field in fields(self) if (step := getattr(self, field.name)) is not None)

    @property
    def transductive(self) -> bool:
        """Whether the order for one query depends on other queries, or gallery items are changed."""
        return any(step.transductive for step in self.steps)

    def __str__(self) -> str:
        """Return the names of the steps, such as `class similarity + query expansion`; `none` without any."""
        return " + ".join(step.title for step in self.steps) or "none"


def _require_neighbours(argument: str, value: int) -> None:
    if not (type(value) is int and 1 <= value <= MAX_NEIGHBOURS):
        raise OptionError(
            f"`{argument}` must be an integer from 1 to {MAX_NEIGHBOURS}, got {value!r}.", argument=argument
        )


def _require_between(argument: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise OptionError(f"`{argument}` must be from {low:g} to {high:g}, got {value!r}.", argument=argument)
