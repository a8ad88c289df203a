"""The dashboard and the API reference: static files, and the colours of clusters.

The pages draw in the browser, from the public API, so twenty viewers cost as much as twenty listeners to one stream.
The files hold no data and need no token; their requests do.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Response

from streamkm.palette import COLOURS
from streamkm.service.problems import Problem

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the pages: only files of this service, and no inline scripts."""
_FOLDERS = ("dashboard", "reference")
"""The dashboard, and the API reference. File names are unique across both."""
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
}


@dataclass(frozen=True)
class Asset:
    """A static file.

    Attributes
    ----------
    media_type
        Media type.
    content, compressed
        Its bytes, and the same compressed by gzip.
    etag
        Entity tag.
    """

    media_type: str
    content: bytes
    compressed: bytes
    etag: str


def router() -> APIRouter:
    """The routes of the pages, which are not part of the API."""
    assets = {name: _asset(name, content) for name, content in _contents()}
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page(
        if_none_match: Annotated[str | None, Header()] = None, accept_encoding: Annotated[str, Header()] = ""
    ) -> Response:
        return _respond(assets["index.html"], if_none_match, accept_encoding)

    @routes.get("/docs")
    async def docs(
        if_none_match: Annotated[str | None, Header()] = None, accept_encoding: Annotated[str, Header()] = ""
    ) -> Response:
        return _respond(assets["docs.html"], if_none_match, accept_encoding)

    @routes.get("/assets/{name}")
    async def asset(
        name: str, if_none_match: Annotated[str | None, Header()] = None, accept_encoding: Annotated[str, Header()] = ""
    ) -> Response:
        if name not in assets:
            raise Problem(404, "not-found", "unknown file", where=name[:100])
        return _respond(assets[name], if_none_match, accept_encoding)

    return routes


def _contents() -> list[tuple[str, bytes]]:
    folders = [files("streamkm.service") / name for name in _FOLDERS]
    found = [
        (f.name, f.read_bytes()) for at in folders for f in at.iterdir() if f.name.rpartition(".")[2] in _MEDIA_TYPES
    ]
    return [*found, ("palette.json", orjson.dumps(COLOURS))]


def _asset(name: str, content: bytes) -> Asset:
    compressed = gzip.compress(content, 9, mtime=0)
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return Asset(_MEDIA_TYPES[name.rpartition(".")[2]], content, compressed, etag)


def _respond(asset: Asset, if_none_match: str | None, accept_encoding: str) -> Response:
    # Browsers revalidate each time, which is cheap, and so never show the page of an older service.
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if if_none_match is not None and asset.etag in if_none_match:
        return Response(status_code=304, headers=headers)
    headers["Content-Security-Policy"] = POLICY
    if "gzip" in accept_encoding:
        return Response(asset.compressed, headers=headers | {"Content-Encoding": "gzip"}, media_type=asset.media_type)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
