"""``/v1/models/{m}/jobs``: recomputations, asked for over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from streamkm.service.job_runner import LOST_AFTER, Jobs, job_json, seen
from streamkm.service.problems import Problem, described, documented
from streamkm.service.request_body import Bodies
from streamkm.service.routes.control import BODY_ERRORS, ERRORS, answer_json, body_of, parsed, told
from streamkm.service.routes.models import ModelName, NoQuery
from streamkm.service.schemas import control as schemas
from streamkm.service.snapshot_cache import Reader
from streamkm.stores.base import Job

JobId = Annotated[
    str,
    Path(pattern=r"^[A-Za-z0-9]+$", max_length=64, description="Id of the job", examples=["9f2c4b1e70aa4d53"]),
]
_NO_JOBS = described(409, "no-jobs", "this service recomputes nothing", "", "Start it with streamkm serve")


def router(reader: Reader, bodies: Bodies, jobs: Jobs | None) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Whose store keeps the jobs.
    bodies
        What reads requests.
    jobs
        What runs them; None: jobs of other services are shown, and none is taken.
    """
    routes = APIRouter(prefix="/v1", tags=["jobs"])
    store = reader.store

    @routes.post(
        "/models/{model}/jobs",
        summary="Recompute a range of the topic",
        status_code=202,
        response_model=schemas.JobOut,
        responses=documented(BODY_ERRORS) | _NO_JOBS,
        openapi_extra=body_of(schemas.JobAsked),
    )
    async def ask(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """Run the exact algorithm over a range of the topic, beside the live consumer, one job at a time.

        What comes of it is a snapshot that answers nothing until it is promoted.
        """
        async with bodies.read(request) as body:
            asked = parsed(schemas.JobAsked, body)
        if jobs is None:
            raise Problem(409, "no-jobs", "this service recomputes nothing", hint="Start it with streamkm serve")
        await reader.ask(lambda: store.model(model))
        job = await jobs.submit(model, asked.model_dump(by_alias=True))
        told(request, "job", model, job=job.id)
        return answer_json(job_json(job), 202, {"Location": f"/v1/models/{model}/jobs/{job.id}"})

    @routes.get(
        "/models/{model}/jobs",
        summary="Jobs of a model",
        response_model=schemas.JobList,
        responses=documented(ERRORS),
    )
    async def list_(model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """The newest 100, newest first."""

        def ask_store() -> list[Job]:
            store.model(model)
            return list(store.jobs(model))

        return answer_json({"jobs": [job_json(await current(job)) for job in await reader.ask(ask_store)]})

    @routes.get(
        "/models/{model}/jobs/{job_id}",
        summary="One job",
        response_model=schemas.JobOut,
        responses=documented(ERRORS),
    )
    async def one(model: ModelName, job_id: JobId, _: Annotated[NoQuery, Query()]) -> Response:
        """A job with its progress. One that nobody works on any more has failed."""
        return answer_json(job_json(await current(await reader.ask(lambda: store.job(model, job_id)))))

    @routes.delete(
        "/models/{model}/jobs/{job_id}",
        summary="Cancel a job",
        status_code=202,
        response_model=schemas.JobOut,
        responses=documented(ERRORS)
        | described(409, "ended", "9f2c4b1e70aa4d53: it is done", "9f2c4b1e70aa4d53", "There is nothing to cancel"),
    )
    async def cancel(request: Request, model: ModelName, job_id: JobId, _: Annotated[NoQuery, Query()]) -> Response:
        """Stop a job that waits or runs; what it has read is kept for the next one that asks the same."""
        job = await current(await reader.ask(lambda: store.job(model, job_id)))
        if job.state not in {"queued", "running"}:
            raise Problem(409, "ended", f"it is {job.state}", where=job_id, hint="There is nothing to cancel")
        if jobs is None:
            raise Problem(409, "no-jobs", "this service runs no jobs", where=job_id, hint="Ask the one that runs it")
        job = await jobs.cancel(job)
        told(request, "cancel", model, job=job_id)
        return answer_json(job_json(job), 202)

    async def current(job: Job) -> Job:
        """A job as it is: one that nobody works on is marked so."""
        found = seen(job, reader.clock(), LOST_AFTER)
        if found is not job:
            await reader.ask(lambda: store.put_job(found))
        return found

    return routes
