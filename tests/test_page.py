"""The page's files as the service sends them; what a browser makes of them is in test_dashboard."""

from __future__ import annotations

import re

import pytest

from service_api import Api
from streamkm.palette import COLOURS
from streamkm.service.routes.dashboard import POLICY
from streamkm.stores import MemoryStore

LINK = re.compile(r"""(?:from |import |src=|href=)["']([./][^"']*)["']""")


@pytest.fixture(scope="module")
def api():
    return Api(MemoryStore())


PAGES = ("/", "/docs")


def linked(api):
    """Every file that the pages lead to, by way of others too."""
    found, todo = {}, list(PAGES)
    while todo:
        url = todo.pop()
        if url in found:
            continue
        answer = api.get(url)
        found[url] = answer
        if answer.headers["content-type"].startswith("text/"):
            todo += [re.sub(r"^\./", "/assets/", link) for link in LINK.findall(answer.text)]
    return found


def test_every_file_that_the_page_leads_to_is_there(api):
    found = linked(api)
    assert {u: a.status_code for u, a in found.items() if a.status_code != 200} == {}
    assert len(found) > 10
    assert api.get("/assets/palette.json").json() == list(COLOURS)


def test_nothing_comes_from_another_host(api):
    for url, answer in linked(api).items():
        text = answer.text.replace("http://www.w3.org/2000/svg", "")  # a name, which nobody loads
        assert not re.search(r"https?://|[\"']//", text), url


@pytest.mark.parametrize("page", PAGES)
def test_the_page_may_load_and_run_only_what_is_ours(api, page):
    answer = api.get(page)
    assert answer.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=", answer.text), "inline code would not run"


def test_a_file_is_sent_once_and_packed(api):
    plain = api.get("/assets/style.css", headers={"Accept-Encoding": "identity"})
    packed = api.get("/assets/style.css", headers={"Accept-Encoding": "gzip"})
    assert plain.text == packed.text
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2
    again = api.get("/assets/style.css", headers={"If-None-Match": plain.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fpage.py", "%2e%2e%2fpage.py"])
def test_there_is_no_other_file(api, name):
    answer = api.get(f"/assets/{name}")
    assert answer.status_code == 404
    assert answer.json()["code"] == "not-found"
