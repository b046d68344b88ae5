"""The bodies of requests and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = str | bool | int | Finite | None

_MAX_EXAMPLES = 100  # as many as a form has fields
EXAMPLE_IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class EncodedImage:
    """An image in base64, or a data URI."""

    text: str


def _as_example(value: object) -> str | EncodedImage:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.keys() == {"image"} and isinstance(value["image"], str):
        return EncodedImage(value["image"])
    raise ValueError('must be the id of an item, or {"image": base64}')


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Images = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
Example = Annotated[
    str | EncodedImage,
    PlainValidator(_as_example),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "description": "the id of an item"},
                {
                    "type": "object",
                    "properties": {"image": {"type": "string", "description": "an image in base64, or a data URI"}},
                    "required": ["image"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class SearchBody(_Request):
    """What to search for: one of `image`, `id` and `vector`, or only `positive` examples."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image": EXAMPLE_IMAGE},
                {"image": [EXAMPLE_IMAGE, EXAMPLE_IMAGE], "crop": "25%,25%,50%,50%", "min_probability": 0.8},
                {"id": "hats/12.jpg", "where": "year >= 2020"},
                {"id": "hats/12.jpg", "positive": ["hats/3.jpg", {"image": EXAMPLE_IMAGE}], "negative": ["caps/7.jpg"]},
                {"vector": [0.1, -0.2, 0.3]},
            ]
        }
    )
    image: Images | None = Field(
        None, description="an image in base64, or a data URI; the mean of a list of images is searched for"
    )
    id: str | None = Field(None, description="an item of the index, which is not among its own hits")
    vector: Annotated[list[Finite], Field(min_length=1, max_length=65_536)] | None = Field(
        None, description="an embedding of the model of the index"
    )
    crop: str | None = Field(
        None,
        description="the part of each `image` that counts: x,y,width,height in pixels of the upright image, such as "
        "10,20,300,200, or in shares of its sides, such as 25%,25%,50%,50%",
        examples=["25%,25%,50%,50%"],
    )
    positive: list[Example] = Field(
        default_factory=list,
        max_length=_MAX_EXAMPLES,
        description="examples of what is searched for: ids of items, which are not hits, or images",
    )
    negative: list[Example] = Field(
        default_factory=list,
        max_length=_MAX_EXAMPLES,
        description="examples of what is not searched for: ids of items, or images",
    )
    where: str | None = Field(None, description="a filter: only the items that fit it are hits")
    min_probability: Finite = Field(
        0.0,
        ge=0,
        le=1,
        description="hits with a lower probability are dropped, so that there may be none; needs an index whose model "
        "has a calibration",
    )


class ItemChangeBody(_Request):
    """What to change of an item; what is not sent stays."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"label": "hat", "metadata": {"year": 2021, "old": None}}]}
    )
    image: str | None = Field(None, description="its new image: a file in a form, base64 in JSON")
    label: str | None = Field(None, max_length=1000, description="its label; null removes it")
    metadata: dict[str, Value] | None = Field(
        None, description="text, numbers and booleans by name; null removes a name"
    )


class ItemBody(ItemChangeBody):
    """An item to add."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"image": EXAMPLE_IMAGE, "id": "hats/13.jpg", "label": "hat", "metadata": {"year": 2021}}]
        }
    )
    image: str | None = Field(None, description="its image: a file in a form, base64 in JSON")
    id: str | None = Field(None, description="its id; a random one if there is none")
    label: str | None = Field(None, max_length=1000, description="its label")


class HitAnswer(BaseModel):
    """An item that a search returned."""

    id: str
    score: float = Field(description="cosine similarity, at most 1; higher is more similar")
    probability: float | None = Field(
        None, description="that it has the label of the query; null if the model of the index has no calibration"
    )
    label: str | None = None
    metadata: dict[str, Value] = Field(default_factory=dict)


class SearchAnswer(BaseModel):
    """The hits of a search, best first; none if nothing matches."""

    hits: list[HitAnswer]
    took_ms: float = Field(description="milliseconds from the headers of the request to its answer")


class ItemAnswer(BaseModel):
    """An item."""

    id: str
    label: str | None = None
    metadata: dict[str, Value] = Field(default_factory=dict)


class ItemsAnswer(BaseModel):
    """Items in the order of their ids."""

    items: list[ItemAnswer]
    next: str | None = Field(None, description="pass it as `after` for the next items; null at the end")


class IndexAnswer(BaseModel):
    """An index of the service."""

    name: str
    items: int
    model: str
    dimensions: int
    calibrated: bool = Field(description="whether hits have a probability")
    default: bool = Field(description="whether /v1/search and /v1/items use it")


class IndexesAnswer(BaseModel):
    """The indexes of the service."""

    indexes: list[IndexAnswer]


class MemberAnswer(BaseModel):
    """One backbone of a model."""

    name: str
    state: str = Field(description="untrained, frozen, frozen + trained head, or fine-tuned")
    width: int = Field(description="of its input, in pixels")
    height: int


class EstimateAnswer(BaseModel):
    """A mean over queries and its 95 % interval."""

    mean: float
    low: float
    high: float


class CandidateAnswer(BaseModel):
    """A candidate of the benchmark that selected a model."""

    name: str
    type: str = Field(description="such as single, fine-tuned")
    accuracy: EstimateAnswer
    ms: float | None = Field(None, description="median milliseconds of one image; null if it was not measured")
    winner: bool


class LeaderboardAnswer(BaseModel):
    """The candidates of a benchmark, best first."""

    measure: str = Field(description="of the accuracy")
    measured_on: str = Field(description="test (query and gallery) or validation")
    candidates: list[CandidateAnswer]


class ModelCardAnswer(BaseModel):
    """What is known of a model."""

    name: str
    state: str = Field(description="untrained, frozen, frozen + trained head, fine-tuned, or mixed")
    dimensions: int
    members: list[MemberAnswer] = Field(description="one, or those of an ensemble")
    combination: str | None = Field(None, description="of an ensemble: aligned, average or concat")
    runtime: str
    precision: str
    training_images: int | None = Field(None, description="null if it was not trained")
    classes: int = Field(description="number of classes that it was trained on")
    calibrated: bool = Field(description="whether it turns cosines into probabilities")
    measures: dict[str, dict[str, EstimateAnswer]] = Field(description="by split, by measure")
    reason: str | None = Field(None, description="why a benchmark selected it; null if none did")
    leaderboard: LeaderboardAnswer | None = Field(None, description="of that benchmark")


class AccessAnswer(BaseModel):
    """What a request may do."""

    scope: str = Field(description="read (search and look), or write (also add, change and remove items)")


class ProblemAnswer(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:lookalike:problem:unreadable-image"])
    title: str
    status: int
    detail: str
    request_id: str
    parameter: str | None = Field(None, description="the part of the request that is wrong")


class EmbeddingsBody(BaseModel):
    """OpenAI's request for embeddings, of images: exactly one of `input` and `messages`."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "model": "efficientnet_lite0",
                    "input": [f"data:image/png;base64,{EXAMPLE_IMAGE}"],
                    "modality": "image",
                },
                {"model": "efficientnet_lite0", "input": [{"image": EXAMPLE_IMAGE}]},
                {
                    "model": "efficientnet_lite0",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {
                                    "type": "image_url",
                                    "image_url": {"url": f"data:image/png;base64,{EXAMPLE_IMAGE}"},
                                }
                            ],
                        }
                    ],
                },
            ]
        },
    )
    model: str = Field(description="a name from /v1/models")
    input: Any = Field(
        None, description='data URIs (with "modality": "image"), {"image": base64} or image_url parts, one or a list'
    )
    messages: list[Any] | None = Field(None, description="messages whose content is image_url parts")
    modality: str | None = Field(None, description="image")
    encoding_format: str = Field("float", description="float or base64")
    dimensions: int | None = Field(None, description="refused unless it is the model's")
    user: str | None = Field(None, description="ignored")


class EmbeddingAnswer(BaseModel):
    """The embedding of one image."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str = Field(description="numbers, or float32 little-endian in base64")


class UsageAnswer(BaseModel):
    """Tokens; images have none."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsAnswer(BaseModel):
    """The embeddings of all images, in their order."""

    object: str = "list"
    data: list[EmbeddingAnswer]
    model: str
    usage: UsageAnswer


class ModelAnswer(BaseModel):
    """A model that embeds images."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "lookalike"


class ModelsAnswer(BaseModel):
    """The models of the service."""

    object: str = "list"
    data: list[ModelAnswer]


class OpenAIError(BaseModel):
    """What is wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIErrorAnswer(BaseModel):
    """An error in OpenAI's form."""

    error: OpenAIError


class StateAnswer(BaseModel):
    """Whether the service is alive, and ready."""

    status: str
