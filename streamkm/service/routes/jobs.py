"""``/v1/models/{m}/jobs``: recomputation jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from streamkm.service.job_runner import LOST_AFTER_SECONDS, JobRunner, job_json, with_lost_state
from streamkm.service.problems import Problem, problem_response, problem_responses
from streamkm.service.request_body import BodyReader
from streamkm.service.routes.control import (
    BODY_ERRORS,
    ERRORS,
    json_content,
    log_action,
    parse_body,
    request_body_schema,
)
from streamkm.service.routes.models import ModelName, NoQuery
from streamkm.service.schemas import control as schemas
from streamkm.service.snapshot_cache import StoreReader
from streamkm.stores.base import Job

JobId = Annotated[
    str,
    Path(pattern=r"^[A-Za-z0-9]+$", max_length=64, description="Id of the job", examples=["9f2c4b1e70aa4d53"]),
]
_NO_JOBS = problem_response(409, "no-jobs", "this service runs no jobs", "", "Start it with streamkm serve")


def router(reader: StoreReader, bodies: BodyReader, jobs: JobRunner | None) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Access to the store.
    bodies
        Reads request bodies.
    jobs
        Runs the jobs; if None, jobs of other services are shown, and none can be started.
    """
    routes = APIRouter(prefix="/v1", tags=["jobs"])
    store = reader.store

    @routes.post(
        "/models/{model}/jobs",
        summary="Recompute a range of the topic",
        status_code=202,
        response_model=schemas.JobResponse,
        responses=problem_responses(BODY_ERRORS) | _NO_JOBS,
        openapi_extra=request_body_schema(schemas.JobRequest),
    )
    async def start(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """Run exact K-Means over a range of the topic, beside the live consumer, one job at a time.

        The resulting snapshot is not in charge until it is promoted.
        """
        async with bodies.read(request) as body:
            options = parse_body(schemas.JobRequest, body)
        if jobs is None:
            raise Problem(409, "no-jobs", "this service runs no jobs", hint="Start it with streamkm serve")
        await reader.query(lambda: store.model(model))
        job = await jobs.submit(model, options.model_dump(by_alias=True))
        log_action(request, "job", model, job=job.id)
        return json_content(job_json(job), 202, {"Location": f"/v1/models/{model}/jobs/{job.id}"})

    @routes.get(
        "/models/{model}/jobs",
        summary="Jobs of a model",
        response_model=schemas.JobList,
        responses=problem_responses(ERRORS),
    )
    async def list_(model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """The newest 100 jobs, newest first."""

        def read() -> list[Job]:
            store.model(model)
            return list(store.jobs(model))

        return json_content({"jobs": [job_json(await current(job)) for job in await reader.query(read)]})

    @routes.get(
        "/models/{model}/jobs/{job_id}",
        summary="One job",
        response_model=schemas.JobResponse,
        responses=problem_responses(ERRORS),
    )
    async def one(model: ModelName, job_id: JobId, _: Annotated[NoQuery, Query()]) -> Response:
        """A job with its progress; a job whose service is gone has failed."""
        return json_content(job_json(await current(await reader.query(lambda: store.job(model, job_id)))))

    @routes.delete(
        "/models/{model}/jobs/{job_id}",
        summary="Cancel a job",
        status_code=202,
        response_model=schemas.JobResponse,
        responses=problem_responses(ERRORS)
        | problem_response(
            409, "ended", "9f2c4b1e70aa4d53: it is done", "9f2c4b1e70aa4d53", "There is nothing to cancel"
        ),
    )
    async def cancel(request: Request, model: ModelName, job_id: JobId, _: Annotated[NoQuery, Query()]) -> Response:
        """Cancel a queued or running job; records that it has read are kept for the next job with the same range."""
        job = await current(await reader.query(lambda: store.job(model, job_id)))
        if job.state not in {"queued", "running"}:
            raise Problem(409, "ended", f"it is {job.state}", where=job_id, hint="There is nothing to cancel")
        if jobs is None:
            raise Problem(409, "no-jobs", "this service runs no jobs", where=job_id, hint="Ask its own service")
        job = await jobs.cancel(job)
        log_action(request, "cancel", model, job=job_id)
        return json_content(job_json(job), 202)

    async def current(job: Job) -> Job:
        """The job; if it is lost, that is stored."""
        found = with_lost_state(job, reader.clock(), LOST_AFTER_SECONDS)
        if found is not job:
            await reader.query(lambda: store.put_job(found))
        return found

    return routes
