"""The card of an index's model: what it is, what it was trained on, and how well it measured."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request

from lookalike.models.backbone_files import without_folders
from lookalike.models.info import BenchmarkInfo, BundleInfo
from lookalike.server.problems import PROBLEMS
from lookalike.server.schemas import (
    CandidateAnswer,
    EstimateAnswer,
    LeaderboardAnswer,
    MemberAnswer,
    ModelCardAnswer,
)
from lookalike.server.service import ServedIndex, Service

router = APIRouter(tags=["items"], responses={status: PROBLEMS[status] for status in (401, 404, 429)})


@router.get("/v1/indexes/{name}/model", response_model=ModelCardAnswer, summary="Show the model of an index")
async def show_card(request: Request, name: str) -> ModelCardAnswer:
    """Say what the model of an index is, what it was trained on, and how well it measured."""
    service: Service = request.app.state.service
    async with service.use(name) as served:
        return _card(served, served.model)


def _leaderboard(benchmark: BenchmarkInfo | None) -> LeaderboardAnswer | None:
    if benchmark is None or not benchmark.leaderboard:
        return None
    return LeaderboardAnswer(
        measure=benchmark.measure,
        measured_on=benchmark.measured_on,
        candidates=[CandidateAnswer.model_validate(asdict(candidate)) for candidate in benchmark.leaderboard],
    )


def _card(served: ServedIndex, info: BundleInfo) -> ModelCardAnswer:
    encoder, data = served.loaded.encoder, info.training_data
    return ModelCardAnswer(
        name=without_folders(info.name),
        state=encoder.state,
        dimensions=info.dim,
        members=[
            MemberAnswer(
                name=without_folders(member.backbone.name),
                state=member.state,
                width=member.backbone.preprocessing.width,
                height=member.backbone.preprocessing.height,
            )
            for member in info.members
        ],
        combination=info.combination,
        runtime=encoder.runtime,
        precision=encoder.precision,
        training_images=None if data is None else data.images,
        classes=len(info.classes),
        calibrated=info.calibration is not None,
        measures={
            split: {measure: EstimateAnswer(**asdict(estimate)) for measure, estimate in measures.items()}
            for split, measures in info.measures.items()
        },
        reason=None if info.benchmark is None else info.benchmark.reason,
        leaderboard=_leaderboard(info.benchmark),
    )
