"""Schemas of access, control and jobs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from streamkm.service.schemas import examples
from streamkm.service.schemas.examples import config
from streamkm.stores.base import JobState

MAX_RANGE_CHARS = 200
"""Characters of the start or the end of a range."""
INITS = r"^(k-means\+\+|k-means\|\||random|live|snapshot:[1-9][0-9]{0,17})$"
"""Initializations that read no file of the service's machine; the command line takes files with centroids too."""


class WhoAmI(BaseModel):
    """Rights of the token that was sent."""

    model_config = config({"name": "reports", "right": "read", "models": ["orders"]}, strict=True)
    name: str | None = Field(description="Name of the token; null without one")
    right: Literal["none", "read", "write"] = Field(description="`write` includes reading")
    models: list[str] | None = Field(description="Models that it is restricted to; null for all")


class PromoteRequest(BaseModel):
    """The snapshot to put in charge."""

    model_config = config({"snapshot": 43, "skip": False}, strict=True)
    snapshot: int = Field(ge=1, le=2**53, description="Number of the snapshot")
    skip: bool = Field(
        default=False, description="Skip the records between the snapshot and now; else the consumer learns them again"
    )


class PromoteResponse(BaseModel):
    """The request is stored; the consumer carries it out at its next checkpoint."""

    model_config = config({"snapshot": 43, "skip": False, "state": "requested"}, strict=True)
    snapshot: int
    skip: bool
    state: Literal["requested"]


class PauseState(BaseModel):
    """Whether the consumer is asked to stop reading."""

    model_config = config({"paused": True}, strict=True)
    paused: bool


class JobRequest(BaseModel):
    """A recomputation: exact K-Means over a range of the topic."""

    model_config = config(examples.JOB_REQUEST, strict=True)
    start: str = Field(
        default="beginning",
        alias="from",
        min_length=1,
        max_length=MAX_RANGE_CHARS,
        description="Start of the range: beginning, an ISO 8601 time, an age (2h), offset:N, P:N,P:N, or snapshot:N",
    )
    stop: str = Field(
        default="now",
        alias="to",
        min_length=1,
        max_length=MAX_RANGE_CHARS,
        description="End of the range, in the same forms, or now",
    )
    k: int | None = Field(default=None, ge=1, le=1000, description="Number of clusters; the model's own if absent")
    init: str = Field(
        default="k-means++",
        pattern=INITS,
        description="Initial centroids: k-means++, k-means||, random, live (the newest snapshot), or snapshot:N",
    )
    n_init: int = Field(
        default=1, ge=1, le=100, description="Number of initializations, of which the one with the lowest cost is kept"
    )
    max_iter: int = Field(default=300, ge=1, le=100_000, description="Maximum number of iterations")

    @field_validator("start", "stop")
    @classmethod
    def _is_printable(cls, text: str) -> str:
        """Refuse text that a command line would parse as an option, or that has line breaks."""
        if text.startswith("-") or not text.isprintable():
            raise ValueError("is not a position in a topic")
        return text


class JobProgress(BaseModel):
    """Progress of a job; a value that does not apply to the stage is null."""

    model_config = ConfigDict(extra="forbid")
    stage: Literal["starting", "reading", "fitting"] = "starting"
    done: int | None = Field(default=None, description="Offsets read")
    total: int | None = Field(default=None, description="Offsets to read")
    run: int | None = Field(default=None, description="Current initialization, from 0")
    iteration: int | None = Field(default=None, description="Current iteration, from 1")
    inertia: float | None = Field(default=None, description="Current sum of squared distances")
    moved: int | None = Field(default=None, description="Points whose cluster the iteration changed")


class JobResponse(BaseModel):
    """A recomputation job."""

    model_config = ConfigDict(extra="forbid", title="Job", json_schema_extra={"examples": [examples.JOB]})
    id: str
    model: str
    state: JobState
    options: dict[str, Any] = Field(description="The request")
    progress: JobProgress
    snapshot: int | None = Field(description="Number of the resulting snapshot; null until the job is done")
    error: str = Field(description="Why it failed or was cancelled; else empty")
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    updated_at: str = Field(json_schema_extra={"format": "date-time"})


class JobList(BaseModel):
    """The jobs of a model, newest first."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"jobs": [examples.JOB]}]})
    jobs: list[JobResponse]
