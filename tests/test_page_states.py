"""The page in a real Chromium over models in all states, without a broker: what it says of each is so."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import replace

import numpy as np
import pytest

import gallery
from browser import chromium, opened, says, serious, until
from processes import program
from streamkm.effect_sizes import differences
from streamkm.stores import open_store

TABLE = "document.querySelectorAll('#clusters tbody tr').length > 0"
DRAWN = "document.querySelectorAll('#map svg g').length"
MINUS = "\N{MINUS SIGN}"
IS = "word => document.querySelector('#health').dataset.word === word"


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A store with the gallery, a service over it, and a browser; gives the first and the address of a model."""
    folder = tmp_path_factory.mktemp("gallery")
    url = f"sqlite:///{folder / 's.db'}"
    gallery.write(url)
    said = re.compile(r'serving on (http://[^\s"]+)')
    with program(folder / "log", "serve", "--port", "0", "--store", url) as service, chromium() as browser:
        service.until(lambda: said.search(service.output()) is not None)
        at = said.search(service.output())[1]
        with contextlib.closing(open_store(url)) as store:
            yield store, lambda name, **how: opened(browser, f"{at}/#model={name}", **how)


def choose(page, name):
    page.select_option("#model", name)
    until(page, "name => location.hash === `#model=${name}`", name)


def text(page, selector):
    return " ".join(page.text_content(selector).split())


@pytest.mark.parametrize("name", ["fresh", "dead", "old", "cities", "square", "wide"])
def test_no_state_shows_what_is_no_answer_or_keeps_people_out(stage, name):
    with stage[1](name) as page:
        until(page, "document.querySelector('#now .tile') !== null")
        until(page, f"{TABLE} || document.querySelector('#clusters .note') !== null")
        if name not in {"fresh", "dead"}:
            until(page, TABLE)
            page.click("#clusters button.cluster")
            page.wait_for_selector("#clusters .profile table")
        seen = page.inner_text("body")
        assert not re.search(r"\b(null|NaN|undefined|Infinity|Invalid Date)\b|\[object", seen)
        if name in {"fresh", "wide"}:
            assert serious(page) == []


def test_what_makes_a_cluster_different_is_what_the_store_knows_with_its_sign(stage):
    store, look = stage
    s = store.snapshot("wide")
    found = differences(s.centroids, s.weights, s.deviations)
    with look("wide") as page:
        until(page, TABLE)
        says(page, "#clusters caption", "sensor.11.value")
        says(page, "#clusters caption", "sensor.29.value")
        for place in range(len(s.ids)):
            page.locator("#clusters button.cluster").nth(place).click()
            until(
                page,
                "h => document.querySelector('#clusters .profile h3')?.textContent === h",
                f"Cluster {s.ids[place]}",
            )
            rows = page.locator("#clusters .profile table").first.locator("tbody tr")
            best = int(np.abs(found[place]).argmax())
            assert rows.nth(0).locator("th").text_content() == f"sensor.{best}.value"
            said = rows.nth(0).locator("td").nth(2).text_content()
            assert float(said.replace(MINUS, "-")) == pytest.approx(found[place, best], rel=0.06)
            box = rows.nth(0).locator("rect")
            x, width = float(box.get_attribute("x")), float(box.get_attribute("width"))
            assert (x < 80) == (found[place, best] < 0), "a bar to the left is less than the mean"
            assert width > 70, "the largest difference has the longest bar"
            assert rows.count() <= 4, "fields of noise are counted, not shown"
            says(page, "#clusters .profile caption", "more fields by less than 0.2")
            page.locator("#clusters button.cluster").nth(place).click()


def test_what_an_older_version_published_is_not_known(stage):
    with stage[1]("old") as page:
        says(page, "#clusters caption", "not known: an older streamkm")
        page.click("#clusters button.cluster")
        says(page, "#clusters .profile tbody", "not known")


def test_nothing_of_a_model_is_left_when_another_is_chosen(stage):
    with stage[1]("cities") as page:
        until(page, TABLE)
        until(page, f"{DRAWN} === 5")
        page.click("#clusters button.cluster")
        page.wait_for_selector("#clusters .profile table")
        page.wait_for_selector("#k .charts")
        page.wait_for_selector("#feed .partitions table")
        blank = "document.querySelector('#map canvas').toDataURL()"
        before = page.evaluate(blank)
        choose(page, "fresh")
        until(page, IS, "warming-up")
        until(page, f"{DRAWN} === 0")
        assert page.evaluate(blank) != before
        assert not page.evaluate(
            "[...document.querySelector('#map canvas').getContext('2d').getImageData(0, 0, 300, 150).data].some(v => v)"
        )
        for panel in ("#clusters", "#k", "#feed .partitions", "#timeline"):
            assert page.locator(f"{panel} table, {panel} .charts, {panel} .shares svg").count() == 0, panel
        assert text(page, "#clusters .profile") == ""
        says(page, "#map .note", "No clusters yet.")
        choose(page, "square")
        until(page, f"{DRAWN} === 4")


def test_a_model_that_does_not_exist_is_not_another_one(stage):
    with stage[1]("citis") as page:
        page.wait_for_selector("#trouble:not([hidden])")
        says(page, "#trouble", 'There is no model "citis"')
        assert page.evaluate("document.querySelector('#model').value") == ""
        assert page.locator("#clusters table, #now .tile").count() == 0
        assert page.evaluate("location.hash") == "#model=citis"
        choose(page, "cities")
        until(page, TABLE)
        assert page.is_hidden("#trouble")
        # A link to a section leaves the model in the address, and an address that is typed is followed.
        page.click("nav a[href='#feed']")
        until(page, "location.hash === '#model=cities'")
        page.evaluate("location.hash = '#model=square'")
        until(page, f"{DRAWN} === 4")
        assert page.evaluate("document.querySelector('#model').value") == "square"


def test_a_model_that_is_made_later_appears_in_the_list_and_the_chosen_one_stays(stage):
    store, look = stage
    with look("cities") as page:
        until(page, TABLE)
        names = "[...document.querySelector('#model').options].map(o => o.value)"
        assert "late" not in page.evaluate(names)
        store.create(replace(gallery.SPEC, name="late"), time.time())
        until(page, f"{names}.includes('late')")
        assert page.evaluate("document.querySelector('#model').value") == "cities"
        choose(page, "late")


def test_a_stoppage_is_a_hole_in_every_line_over_time(stage):
    with stage[1]("cities") as page:
        page.wait_for_selector("#timeline .shares svg")
        assert page.locator("#timeline .pause").count() == 1
        assert "nothing was published for 10 min" in page.locator("#timeline .pause title").text_content()
        layers = page.locator("#timeline .shares svg > path[fill^='#']")
        assert [
            layers.nth(i).get_attribute("d").count("Z")
            for i in range(layers.count())
            if "L" in layers.nth(i).get_attribute("d")
        ].count(2) == 5
        for said in (
            "Nothing was published where the stream is broken",
            re.compile(r"Nothing was published since the last snapshot, \d+ min ago"),
            re.compile(r"Times are in UTC[+-]\d\d:\d\d"),
        ):
            says(page, "#timeline .shares .note", said)
        until(page, TABLE)
        trends = page.locator("#clusters tbody tr td:nth-child(4) path.spark")
        assert [trends.nth(i).get_attribute("d").count("M") for i in range(trends.count())] == [2] * 5
        assert page.locator("#now .tile:nth-child(4) path.spark").get_attribute("d").count("M") == 2
        says(page, "#moment-text", re.compile(r"\d (AM|PM) (UTC|GMT|[A-Z]{2,5})"))


def test_an_empty_quarantine_says_no_more_than_is_known(stage):
    with stage[1]("dead") as page:
        until(page, "document.querySelector('#feed .quarantine').textContent.includes('Empty')")
        said = text(page, "#feed .quarantine")
        assert "if it stopped because of bad records, its log tells which" in said
        assert "every record" not in said
        says(page, "#now .tile:nth-child(2)", re.compile(r"at the last commit, \d+ min ago"))
        choose(page, "fresh")
        until(page, "document.querySelector('#feed .quarantine').textContent.includes('no record was learned yet')")
        says(page, "#k .body", re.compile(r"^\s*No criteria for k yet"))
