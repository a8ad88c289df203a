"""The page in a real Chromium, over a live stream from a real broker: looked at, moved in time, acted with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
import uuid
from pathlib import Path

import kafka
import numpy as np
import pytest
from playwright.sync_api import expect

from browser import chromium, opened, says, serious, until
from processes import program, run
from streamkm.stores import open_store
from waiting import wait_until

pytestmark = pytest.mark.kafka

FIELDS = ("amount", "lat", "lon", "speed")
CENTRES = np.array([[0.0, 0.0, 0.0, 9.0], [10.0, 0.0, -5.0, 0.0], [0.0, 12.0, 5.0, 3.0], [-9.0, -9.0, 0.0, -4.0]])
POISON = b'{"amount": "<img src=x onerror=window.hacked=1>"'
PER_SECOND, PARTITIONS, AT_ONCE = 400, 3, 4000
SCREENSHOTS = os.environ.get("STREAMKM_SCREENSHOTS", "")
"""Folder for pictures of the page; none are kept when empty."""


class Stream(threading.Thread):
    """Points around four centres that wander, for as long as somebody looks."""

    def __init__(self, bootstrap, topic):
        super().__init__(daemon=True)
        self.producer, self.topic = kafka.KafkaProducer(bootstrap_servers=bootstrap, linger_ms=50), topic
        self.enough = threading.Event()

    def run(self):
        rng, sent, began = np.random.default_rng(0), 0, time.monotonic()
        while not self.enough.wait(0.05):
            due = AT_ONCE + int(PER_SECOND * (time.monotonic() - began))
            turn = np.sin(sent / 20_000)
            points = CENTRES[rng.integers(len(CENTRES), size=due - sent)] * (1 + turn / 4)
            points += rng.normal(size=points.shape)
            for i, p in enumerate(points.tolist()):
                value = json.dumps(dict(zip(FIELDS, p, strict=True))).encode()
                self.producer.send(self.topic, value, partition=(sent + i) % PARTITIONS)
            sent = due
        self.producer.close()


@pytest.fixture(scope="module")
def stage(bootstrap, admin, tmp_path_factory):
    """Broker, stream, consumer and service; gives the service's URL, the store's, a token, and a way to poison."""
    folder, topic = tmp_path_factory.mktemp("stage"), f"test-{uuid.uuid4().hex[:12]}"
    store, log = f"sqlite:///{folder}/s.db", folder / "log"
    spec = {"num_partitions": PARTITIONS, "replication_factor": 1, "configs": {}}
    admin.create_topics({topic: spec}, wait_for_metadata=True)
    stream = Stream(bootstrap, topic)
    stream.start()
    broker = ("--bootstrap", bootstrap)
    live = ("live", "orders", *broker, "--topic", topic, "--fields", ",".join(FIELDS), "--k", "4", "--store", store)
    with contextlib.ExitStack() as stack:
        stack.callback(admin.delete_topics, [topic])
        stack.callback(stream.enough.set)
        consumer = stack.enter_context(program(log, *live, "--checkpoint-every", "500ms", "--snapshot-every", "2s"))
        consumer.until(lambda: Path(f"{folder}/s.db").exists() and model(store) is not None)
        consumer.until(lambda: model(store).last_snapshot >= 3)
        made = run("tokens", "create", "tester", "--right", "write", "--store", store, "--json")
        assert made.returncode == 0, made.stderr
        service = stack.enter_context(program(folder / "serve.log", "serve", "--port", "0", "--store", store, *broker))
        yield address(service), store, json.loads(made.stdout)["token"], stream


def address(service):
    """Where a service is, as it says itself."""
    said = re.compile(r'serving on (http://[^\s"]+)')
    service.until(lambda: said.search(service.output()) is not None)
    return said.search(service.output())[1] + "/"


def model(store):
    with contextlib.closing(open_store(store)) as opened_store:
        return next(iter(opened_store.models()), None)


def snapshot(store, number=None):
    with contextlib.closing(open_store(store)) as opened_store:
        return opened_store.snapshot("orders", number)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@contextlib.contextmanager
def looking(browser, stage, **how):
    """The page, when it has drawn something."""
    with opened(browser, stage[0], **how) as page:
        until(page, "document.querySelectorAll('#clusters tbody tr').length > 0")
        until(page, "document.querySelectorAll('#map svg g').length > 0")
        yield page


def sign_in(page, token):
    page.click("#sign-in")
    page.fill("#token", token)
    page.click("#token-dialog button[value=ok]")
    until(page, "document.querySelector('#sign-in').textContent.includes('tester')")
    until(page, "document.querySelectorAll('#clusters tbody tr').length > 0")


def move_to(page, index):
    page.evaluate(
        "i => { const m = document.querySelector('#moment'); m.value = i; m.dispatchEvent(new Event('input')); }", index
    )


def moment(page):
    """Number of the snapshot that is looked at."""
    return int(re.search(r"snapshot (\d+)", page.text_content("#moment-text"))[1])


def stands_at(store):
    """The points that a consumer has learned which keeps its lease and learns no more; None for one that goes on."""
    before = model(store)
    wait_until(lambda: model(store).lease.expires_at > before.lease.expires_at, "an owner that keeps its lease")
    points = model(store).progress.counters.points
    return points if points == before.progress.counters.points else None


def points_shown(page):
    return int(re.sub(r"\D", "", page.text_content("#now .tile:first-child .note")))


def test_points_move_and_the_page_follows(browser, stage):
    with looking(browser, stage) as page:
        picture = "document.querySelector('#map canvas').toDataURL()"
        until(page, "document.querySelector('#map .note').textContent.includes('variance')")
        before = page.evaluate(picture)
        for _ in range(3):
            counted = model(stage[1]).progress.counters.points
            until(
                page,
                "n => Number(document.querySelector('#now .tile .note').textContent.replace(/\\D/g, '')) >= n",
                arg=counted,
            )
        assert points_shown(page) > 0
        until(page, f"before => {picture} !== before", before)
        says(page, "#health .word", "running")
        expect(page.locator("#feed .partitions tbody tr")).to_have_count(PARTITIONS)


def test_the_slider_goes_back_in_time_and_two_moments_can_be_compared(browser, stage):
    with looking(browser, stage) as page:
        until(page, "Number(document.querySelector('#moment').max) >= 2")
        page.click("#mark")
        until(page, "/\\d/.test(document.querySelector('#mark').textContent)")
        marked = int(re.search(r"\d+", page.text_content("#mark"))[0])
        move_to(page, 0)
        page.wait_for_selector("body.past")
        then = snapshot(stage[1], moment(page))
        until(page, "n => document.querySelectorAll('#clusters tbody tr').length === n", arg=len(then.ids))
        shares = then.weights / then.weights.sum()
        expect(page.locator("#clusters tbody tr td:nth-child(3)")).to_have_text(
            [f"{100 * s:.{1 if s < 0.1 else 0}f} %" for s in shares.tolist()]
        )
        page.wait_for_selector("#timeline .comparison table")
        says(page, "#timeline .comparison", f"Snapshot {marked} and snapshot {then.id}")
        newest = int(page.get_attribute("#moment", "max"))
        until(page, "n => Number(document.querySelector('#moment').max) > n + 1", arg=newest)
        assert moment(page) == then.id, "new snapshots must not move a page that looks back"
        page.click("#live")
        until(page, "!document.body.classList.contains('past')")
        until(page, "document.querySelector('#moment-text').textContent.includes('newest')")
        assert moment(page) > then.id


def test_a_recomputation_is_started_compared_and_promoted(browser, stage):
    with looking(browser, stage) as page:
        assert page.is_disabled("#job button"), "without a token nobody acts"
        sign_in(page, stage[2])
        page.click("#job button")
        page.wait_for_selector("#recompute .jobs tbody tr")
        page.wait_for_selector("#recompute .jobs >> text=Compare")
        recomputed = int(re.search(r"snapshot (\d+)", page.text_content("#recompute .jobs td.wide"))[1])
        assert snapshot(stage[1], recomputed).kind == "replay"
        page.click("#recompute .jobs >> text=Compare")
        page.wait_for_selector("#recompute .comparison table")
        says(page, "#recompute .comparison", "% of the points change cluster")
        page.click("#recompute .jobs >> text=Promote")
        page.click("#sure button[value=ok]")
        until(page, "document.querySelector('#timeline .shares').textContent.includes('was promoted')")
    with contextlib.closing(open_store(stage[1])) as store:
        promoted = [s for s in store.snapshots("orders", limit=1000) if s.reason == "promoted"]
    assert len(promoted) == 1


def test_behind_a_token_the_page_asks_for_it_and_shows_nothing_before(browser, stage, tmp_path):
    serve = ("serve", "--port", "0", "--store", stage[1])
    with (
        program(tmp_path / "log", *serve, env={"STREAMKM_TOKEN": "long and random"}) as service,
        opened(browser, address(service)) as page,
    ):
        page.wait_for_selector("#token-dialog[open]")
        assert page.locator("#model option").count() == 0
        page.fill("#token", "long and random")
        page.click("#token-dialog button[value=ok]")
        until(page, "document.querySelectorAll('#clusters tbody tr').length > 0")
        assert page.is_enabled("#job button"), "that token may write"


def test_a_model_is_paused_and_resumed(browser, stage):
    with looking(browser, stage) as page:
        sign_in(page, stage[2])
        page.click("#pause")
        page.wait_for_selector("#health[data-word=paused]")
        stood = wait_until(lambda: stands_at(stage[1]), "a consumer that stands still")
        page.click("#pause")
        page.wait_for_selector("#health[data-word=running]")
        until(
            page,
            "n => Number(document.querySelector('#now .tile .note').textContent.replace(/\\D/g, '')) > n",
            arg=stood,
        )


def test_a_poison_record_appears_in_the_quarantine_as_it_is(browser, stage):
    with looking(browser, stage) as page:
        stage[3].producer.send(stage[3].topic, POISON, partition=0)
        page.wait_for_selector("#feed .quarantine td >> text=onerror")
        assert page.evaluate("window.hacked") is None
        assert page.locator("#feed .quarantine img").count() == 0
        says(page, "#feed .quarantine", "not-json")


def test_a_cluster_is_selected_everywhere_and_by_keyboard_too(browser, stage):
    with looking(browser, stage) as page:
        assert page.locator("#clusters [aria-pressed=true]").count() == 0
        page.focus("#map .plane")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#clusters [aria-pressed=true]")
        chosen = page.text_content("#clusters [aria-pressed=true]")
        until(
            page,
            "id => document.querySelector('#map .plane').getAttribute('aria-label').includes(`cluster ${id} is`)",
            arg=chosen,
        )
        says(page, "#clusters .profile h3", f"Cluster {chosen}")
        page.focus("#clusters [aria-pressed=true]")
        page.keyboard.press("Enter")
        until(page, "!document.querySelector('#clusters [aria-pressed=true]')")
        # A click on a centroid does the same.
        box = page.locator("#map .plane").bounding_box()
        place = page.evaluate(
            "document.querySelector('#map svg g path:nth-of-type(2)').getAttribute('transform').match(/[-\\d.]+/g)"
        )
        page.mouse.move(box["x"] + float(place[0]), box["y"] + float(place[1]))
        page.wait_for_selector("#tip:not([hidden])")
        for field in FIELDS:
            says(page, "#tip", f"{field}: ")
        page.mouse.click(box["x"] + float(place[0]), box["y"] + float(place[1]))
        page.wait_for_selector("#clusters [aria-pressed=true]")


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1400, "light"), ("dark", 1400, "dark"), ("phone", 390, "light")]
)
def test_it_can_be_read_by_all(browser, stage, name, width, scheme):
    with looking(browser, stage, width=width, scheme=scheme) as page:
        until(page, "Number(document.querySelector('#moment').max) >= 5")
        page.click("#clusters button.cluster")
        until(page, "document.querySelector('#map .note').textContent.includes('variance')")
        until(page, "/[0-9]/.test(document.querySelector('#now .tile .value').textContent)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert serious(page) == []
        if SCREENSHOTS:
            page.evaluate("document.querySelector('header').style.position = 'static'")
            page.screenshot(path=Path(SCREENSHOTS) / f"page-{name}.png", full_page=True)
