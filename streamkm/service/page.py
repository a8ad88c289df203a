"""The pages for people: a handful of static files, and the colours of clusters.

All of it draws in the browser, from the same API that everybody has, so twenty readers cost the service no more than
twenty listeners to one stream. It holds no data and needs no token; what it asks for does.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Response

from streamkm.palette import COLOURS
from streamkm.service.errors import Problem

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: nothing that is not ours, and no script that a record could bring along."""
_FOLDERS = ("dashboard", "reference")
"""The page over models, and the one that tells the API. No two of their files have one name."""
_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
}


@dataclass(frozen=True)
class Asset:
    """A file as it is sent.

    Attributes
    ----------
    kind
        Media type.
    plain, packed
        Its bytes, and the same by gzip.
    etag
        Entity tag.
    """

    kind: str
    plain: bytes
    packed: bytes
    etag: str


def router(
    describe: Callable[[], Mapping[str, Any]], work: Callable[[Callable[[], Asset]], Awaitable[Asset]]
) -> APIRouter:
    """The routes of the pages and of what they read about the API, which are not part of it.

    Parameters
    ----------
    describe
        Makes the OpenAPI description, which takes a quarter of a second.
    work
        Does something in a thread.
    """
    assets = {name: _asset(name, content) for name, content in _contents()}
    told: Asset | None = None  # what describes the API, once somebody has asked for it
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page(
        if_none_match: Annotated[str | None, Header()] = None, accept_encoding: Annotated[str, Header()] = ""
    ) -> Response:
        return _answer(assets["index.html"], if_none_match, accept_encoding)

    @routes.get("/docs")
    async def docs(
        if_none_match: Annotated[str | None, Header()] = None, accept_encoding: Annotated[str, Header()] = ""
    ) -> Response:
        return _answer(assets["docs.html"], if_none_match, accept_encoding)

    @routes.get("/openapi.json")
    async def description(
        if_none_match: Annotated[str | None, Header()] = None, accept_encoding: Annotated[str, Header()] = ""
    ) -> Response:
        nonlocal told
        if told is None:
            told = await work(lambda: _asset("openapi.json", orjson.dumps(describe())))
        return _answer(told, if_none_match, accept_encoding)

    @routes.get("/assets/{name}")
    async def asset(
        name: str, if_none_match: Annotated[str | None, Header()] = None, accept_encoding: Annotated[str, Header()] = ""
    ) -> Response:
        if name not in assets:
            raise Problem(404, "not-found", "there is no such file", where=name[:100])
        return _answer(assets[name], if_none_match, accept_encoding)

    return routes


def _contents() -> list[tuple[str, bytes]]:
    folders = [files("streamkm.service") / name for name in _FOLDERS]
    found = [(f.name, f.read_bytes()) for at in folders for f in at.iterdir() if f.name.rpartition(".")[2] in _KINDS]
    return [*found, ("palette.json", orjson.dumps(COLOURS))]


def _asset(name: str, content: bytes) -> Asset:
    packed = gzip.compress(content, 9, mtime=0)
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return Asset(_KINDS[name.rpartition(".")[2]], content, packed, etag)


def _answer(asset: Asset, if_none_match: str | None, accept_encoding: str) -> Response:
    # The browser asks each time, which costs nothing, and so never shows the page of an older service.
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if if_none_match is not None and asset.etag in if_none_match:
        return Response(status_code=304, headers=headers)
    headers["Content-Security-Policy"] = POLICY
    if "gzip" in accept_encoding:
        return Response(asset.packed, headers=headers | {"Content-Encoding": "gzip"}, media_type=asset.kind)
    return Response(asset.plain, headers=headers, media_type=asset.kind)
