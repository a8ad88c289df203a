"""What acting routes take and answer, typed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from streamkm.stores.base import JobState

_AT = "2026-11-01T10:00:00.250000Z"
_ASKED: dict[str, Any] = {"from": "2026-11-01", "to": "now", "k": 8, "init": "k-means++", "n_init": 1, "max_iter": 300}
_JOB: dict[str, Any] = {
    "id": "9f2c4b1e70aa4d53",
    "model": "orders",
    "state": "done",
    "asked": _ASKED,
    "progress": {"stage": "fitting", "done": 102200, "total": 102200, "run": 0, "iteration": 21, "inertia": 84800.5},
    "snapshot": 43,
    "error": "",
    "created_at": _AT,
    "updated_at": _AT,
}
MOST_OF_A_PLACE = 200
"""Characters of where a range begins or ends."""
INITS = r"^(k-means\+\+|k-means\|\||random|live|snapshot:[1-9][0-9]{0,17})$"
"""Ways to start that need nothing of the service's machine; the program takes files with centroids too."""


def _config(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [example]})


class Me(BaseModel):
    """Who the service takes you for."""

    model_config = _config({"name": "reports", "right": "read", "models": ["orders"]})
    name: str | None = Field(description="Name of the token; null without one")
    right: Literal["none", "read", "write"] = Field(description="`write` is reading too")
    models: list[str] | None = Field(description="Those it is for; null: all")


class Promote(BaseModel):
    """Which snapshot to put in charge."""

    model_config = _config({"snapshot": 43, "skip": False})
    snapshot: int = Field(ge=1, le=2**53, description="Number of the snapshot")
    skip: bool = Field(
        default=False, description="Leave out the records between it and now; else they are learned again"
    )


class Promoted(BaseModel):
    """The owner of the model is asked; it does it at its next checkpoint."""

    model_config = _config({"snapshot": 43, "skip": False, "state": "asked"})
    snapshot: int
    skip: bool
    state: Literal["asked"]


class Paused(BaseModel):
    """Whether the owner of the model is asked to read nothing."""

    model_config = _config({"paused": True})
    paused: bool


class JobAsked(BaseModel):
    """A recomputation: the exact algorithm over a range of the topic."""

    model_config = _config(_ASKED)
    start: str = Field(
        default="beginning",
        alias="from",
        min_length=1,
        max_length=MOST_OF_A_PLACE,
        description="First record: beginning, an ISO 8601 time, how long ago (2h), offset:N, P:N,P:N, or snapshot:N",
    )
    stop: str = Field(
        default="now", alias="to", min_length=1, max_length=MOST_OF_A_PLACE, description="Where to stop; also: now"
    )
    k: int | None = Field(default=None, ge=1, le=1000, description="Number of clusters; that of the model if absent")
    init: str = Field(
        default="k-means++",
        pattern=INITS,
        description="Where a fit starts: k-means++, k-means||, random, live (the newest snapshot), or snapshot:N",
    )
    n_init: int = Field(
        default=1, ge=1, le=100, description="Fits from different starts, of which the cheapest is kept"
    )
    max_iter: int = Field(default=300, ge=1, le=100_000, description="Most iterations of a fit")

    @field_validator("start", "stop")
    @classmethod
    def _is_a_place(cls, text: str) -> str:
        """Refuse what a command line could take for an option, or a log for more than a line."""
        if text.startswith("-") or not text.isprintable():
            raise ValueError("is no place in a topic")
        return text


class JobProgress(BaseModel):
    """How far it is; null is what is not known at this stage."""

    model_config = ConfigDict(extra="forbid")
    stage: Literal["starting", "reading", "fitting"] = "starting"
    done: int | None = Field(default=None, description="Offsets that were read")
    total: int | None = Field(default=None, description="Offsets to read")
    run: int | None = Field(default=None, description="Which of the fits, from 0")
    iteration: int | None = Field(default=None, description="Which iteration of it, from 1")
    inertia: float | None = Field(default=None, description="Sum of squared distances now")
    moved: int | None = Field(default=None, description="Points that the iteration moved to another cluster")


class JobOut(BaseModel):
    """A recomputation that was asked for."""

    model_config = ConfigDict(extra="forbid", title="Job", json_schema_extra={"examples": [_JOB]})
    id: str
    model: str
    state: JobState
    asked: dict[str, Any] = Field(description="What was asked")
    progress: JobProgress
    snapshot: int | None = Field(description="Number of the snapshot that came of it; null: none yet")
    error: str = Field(description="Why it failed or was cancelled; empty otherwise")
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    updated_at: str = Field(json_schema_extra={"format": "date-time"})


class JobList(BaseModel):
    """The jobs of a model, newest first."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"jobs": [_JOB]}]})
    jobs: list[JobOut]
