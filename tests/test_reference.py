"""The API reference in a real browser."""

from __future__ import annotations

import pytest

from browser import chromium, opened, serious, until
from service_api import TOKEN
from service_server import serving

LISTED = "() => [...document.querySelectorAll('main summary .method')].map((m) => m.parentElement.textContent)"
SHOWN = "(count) => document.querySelectorAll('main summary .method').length === count"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def routes(app):
    """Method and path of all that the description tells of."""
    paths = app.openapi()["paths"].items()
    return sorted(f"{method.upper()}{path}" for path, methods in paths for method in methods)


def test_every_route_of_the_api_is_shown_with_its_parameters_and_responses(browser):
    with serving() as app, opened(browser, f"http://127.0.0.1:{app.state.port}/docs") as page:
        expected = routes(app)
        until(page, SHOWN, len(expected))
        assert page.is_hidden("#sign-in")
        listed = page.evaluate(LISTED)
        assert [r for r in expected if not any(text.startswith(r) for text in listed)] == []
        page.click("summary:has-text('/v1/models/{model}/predict')")
        told = page.inner_text("details[id='post-/v1/models/{model}/predict']")
        for text in ("include", "text/csv", "Request body", "422", "12", "integer (≥ 1)"):
            assert text in told
        page.click("details[id='post-/v1/models/{model}/predict'] summary:has-text('200')")
        page.click("details[id='post-/v1/models/{model}/predict'] a[href='#schema-Prediction']")
        until(page, "() => document.getElementById('schema-Prediction').open")
        assert serious(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_and_asks_for_a_token_where_one_is_needed(browser, scheme):
    with serving(token=TOKEN) as app:
        url = f"http://127.0.0.1:{app.state.port}/docs"
        with opened(browser, url, width=390, height=800, scheme=scheme) as page:
            page.wait_for_selector("#token")
            assert page.inner_text("main") == ""
            page.fill("#token", TOKEN)
            page.click("text=Sign in")
            until(page, SHOWN, len(routes(app)))
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
            assert serious(page) == []
