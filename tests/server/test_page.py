"""The web page, in a browser, against a real service."""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn

from lookalike.models.info import BenchmarkInfo, MeasuredCandidate
from lookalike.server import page_routes
from lookalike.server.access import read_tokens, token
from lookalike.server.app import create_app
from lookalike.server.options import ServiceOptions
from lookalike.server.service import Service
from lookalike.types import Calibration, Estimate

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
WAIT_MS = 20_000
RECORD = """
window.sent = [];
const { fetch } = window;
window.fetch = (path, options) => {
  if (path.includes("/search")) {
    const body = options.body instanceof FormData ? [...options.body] : Object.entries(JSON.parse(options.body));
    sent.push(body.map(([name, value]) => [name, value instanceof File ? `file ${value.name}` : String(value)]));
  }
  return fetch(path, options);
};
"""
ITEMS = 12
LEADERBOARD = BenchmarkInfo(
    "a",
    "a is the cheapest one.",
    0,
    "hit@1",
    "test",
    (
        MeasuredCandidate("a + b", "ensemble, frozen", Estimate(0.9, 0.8, 1.0), None),
        MeasuredCandidate("a", "single, frozen", Estimate(0.8, 0.7, 0.9), 4.5, winner=True),
    ),
)


def test_the_page_is_one_document_without_other_hosts(client):
    response = client.get("/")
    assert response.status_code == client.head("/").status_code == 200
    policy = response.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy)
    assert not [part for part in policy if "unsafe" in part or "http" in part]
    files = [page_routes.FILES / name for name in re.findall(r'(?:src|href)="page/([^"]+)"', response.text)]
    files += [file for file in page_routes.FILES.iterdir() if file.suffix == ".js"]
    for file in files:
        answer = client.get(f"/page/{file.name}")
        assert answer.status_code == 200
        assert answer.content == file.read_bytes()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|eval\(|insertAdjacent", answer.text)
    assert not re.search(r"https?://|\sstyle=|\son\w+=|<script>|<style", response.text)


def test_other_paths_stay_as_they_were(client):
    assert client.get("/nothing").status_code == client.get("/page/nothing").status_code == 404
    assert client.get("/page/../index.html").status_code == client.get("/page/%2e%2e/index.html").status_code == 404
    assert client.delete("/v1/search").status_code == 405


class Site:
    """A service in a thread of this process."""

    def __init__(self, folder: Path, names: Sequence[str] = ("small",), **options: object) -> None:
        file = folder / "tokens"
        self.tokens = {scope: token(file, scope=scope) for scope in ("read", "write")}
        self.service = Service(
            {name: folder / f"{name}.index" for name in names}, ServiceOptions(**options), read_tokens(file)
        )
        self.service.load()
        served = self.service.indexes["small"]
        served.model = replace(served.model, benchmark=LEADERBOARD)
        served.loaded = replace(served.loaded, calibration=Calibration(8.0, -6.0, 40, 0.05))
        served.loaded.index.update("more/cat2.jpg", label="a <b>cat</b>", metadata={"year": 2021, "sold": True})
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        self._server = uvicorn.Server(uvicorn.Config(create_app(self.service), ws="none", log_config=None))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        self._listener = listener

    def stop(self) -> None:
        """Finish what has begun, and end the thread."""
        self._server.should_exit = True
        self._thread.join(30)
        self._listener.close()
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def site(folder) -> Iterator[Site]:
    """A service that lets everybody on this machine read."""
    site = Site(folder)
    yield site
    site.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Chromium of the operating system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


OpenPage = Callable[..., object]


@pytest.fixture
def open_page(browser) -> Iterator[OpenPage]:
    """Open the page of a site; options are of a browser context. Fails on errors of scripts and of the policy."""
    errors: list[str] = []
    contexts = []

    def read_console(message):
        if message.type == "error" and "Failed to load resource" not in message.text:  # an answer that is a problem
            errors.append(message.text)

    def open_(site, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("console", read_console)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(RECORD)
        page.goto(site.url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def page(open_page, site):
    """The page, when it shows the first items."""
    page = open_page(site)
    expect(page.locator(".hit")).to_have_count(ITEMS)
    return page


def expect(value):
    from playwright.sync_api import expect

    expect.set_options(timeout=WAIT_MS)
    return expect(value)


@pytest.fixture(scope="module")
def query(tmp_path_factory, sample_images) -> Path:
    """An image file."""
    path = tmp_path_factory.mktemp("query") / "query.png"
    sample_images["cat"].save(path)
    return path


def pick(page, query, hits=ITEMS):
    page.set_input_files("#file", query)
    expect(page.locator("#status")).to_contain_text(f"{hits} hits in")


def ids(page):
    return page.locator(".hit").evaluate_all("cards => cards.map((card) => card.dataset.id)")


@contextmanager
def next_search(page) -> Iterator[list[tuple[str, str]]]:
    """Collect the fields that the page sends in the next search; of a file its name."""
    count = page.evaluate("sent.length")
    fields: list[tuple[str, str]] = []
    yield fields
    for _ in range(WAIT_MS // 50):
        if page.evaluate("sent.length") > count:
            break
        page.wait_for_timeout(50)
    fields += map(tuple, page.evaluate("sent.at(-1)"))


def crop_of(fields):
    return [float(side.removesuffix("%")) for side in dict(fields)["crop"].split(",")]


def test_search_with_a_file_then_with_a_hit_and_back(page, query, site):
    pick(page, query)
    first = page.locator(".hit").first
    expect(first).to_contain_text("cosine")
    expect(first.locator(".score b")).to_have_text(re.compile(r"\d %$"))
    expect(first.locator(".thumbnail")).to_have_js_property("complete", True)
    assert first.locator(".thumbnail").evaluate("image => image.naturalWidth") > 0
    expect(page.locator(".hit[data-id='more/cat2.jpg'] .label")).to_have_text("a <b>cat</b>")
    expect(page.locator(".hit[data-id='more/cat2.jpg'] .metadata")).to_contain_text("2021")
    nearest = ids(page)[0]
    first.locator(".open").click()
    expect(page.locator("#item-id")).to_have_text(nearest)
    expect(page.locator(".hit")).to_have_count(ITEMS - 1)
    assert nearest not in ids(page)
    page.go_back()
    expect(page.locator("#preview")).to_be_visible()
    expect(page.locator(".hit")).to_have_count(ITEMS)


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_search_with_a_pasted_or_dropped_image(page, kind):
    page.evaluate(
        """async (kind) => {
          const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 30 });
          canvas.getContext("2d").fillRect(5, 5, 9, 9);
          const blob = await new Promise((resolve) => canvas.toBlob(resolve));
          const data = new DataTransfer();
          data.items.add(new File([blob], "image.png", { type: "image/png" }));
          document.dispatchEvent(kind === "paste"
            ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
            : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        kind,
    )
    expect(page.locator("#status")).to_contain_text(f"{ITEMS} hits in")


def test_crop_with_the_mouse_the_keys_and_fields(page, query):
    pick(page, query)
    area = page.locator("#preview").bounding_box()
    across, down = area["width"] / 100, area["height"] / 100
    with next_search(page) as fields:
        page.mouse.move(area["x"] + 20 * across, area["y"] + 10 * down)
        page.mouse.down()
        page.mouse.move(area["x"] + 70 * across, area["y"] + 60 * down, steps=4)
        page.mouse.up()
    crop = crop_of(fields)
    assert crop == pytest.approx([20, 10, 50, 50], abs=1.5)
    expect(page.locator("#box")).to_be_focused()
    expect(page.locator("#crop-width")).to_have_value(re.compile(r"^(49|50|51)"))
    with next_search(page) as fields:
        for key in ("ArrowRight", "Shift+ArrowDown"):
            page.keyboard.press(key)
    assert crop_of(fields) == pytest.approx([crop[0] + 2, crop[1], crop[2], crop[3] + 2], abs=0.11)
    with next_search(page) as fields:
        page.locator("#crop-x").fill("90")
        page.keyboard.press("Tab")
    assert crop_of(fields)[::2] == [90, 10]
    with next_search(page) as fields:
        page.locator("#whole").click()
    assert "crop" not in dict(fields)
    expect(page.locator("#status")).to_contain_text(f"{ITEMS} hits in")


def test_examples_for_and_against(page, query):
    pick(page, query)
    first, second, last = ids(page)[0], ids(page)[1], ids(page)[-1]
    for item, kind in ((first, "positive"), (second, "positive"), (last, "negative")):
        page.locator(f".hit[data-id='{item}'] [data-mark={kind}]").click()
    expect(page.locator("#positive li")).to_have_count(2)
    page.locator("#positive button").nth(1).click()
    expect(page.locator(f".hit[data-id='{second}'] [data-mark=positive]")).to_have_attribute("aria-pressed", "false")
    with next_search(page) as fields:
        page.locator("#search-examples").click()
    assert {("positive", first), ("negative", last)} <= set(fields)
    assert second not in dict(fields).values()
    expect(page.locator("#status")).to_contain_text(f"{ITEMS - 2} hits in")
    assert not {first, last} & set(ids(page))


def test_several_images_and_examples_that_are_images(page, query):
    files = [
        {"name": name, "mimeType": "image/png", "buffer": query.read_bytes()} for name in ("a.png", "b.png", "c.png")
    ]
    with next_search(page) as fields:
        page.set_input_files("#file", files[:2])
    assert fields == [("image", "file a.png"), ("image", "file b.png")]
    expect(page.locator("#images li")).to_have_count(2)
    expect(page.locator("#stage")).to_be_hidden()
    expect(page.locator("#crop")).to_be_hidden()
    page.set_input_files("[data-kind=negative]", files[2])
    page.set_input_files("[data-kind=positive]", files[:1])
    page.locator(".hit [data-mark=positive]").first.click()
    nearest = ids(page)[0]
    with next_search(page) as fields:
        page.set_input_files("#more", files[2])
    assert fields == [
        *(("image", f"file {file['name']}") for file in files),
        *(("positive", value) for value in ("file a.png", nearest)),
        ("negative", "file c.png"),
    ]
    expect(page.locator("#status")).to_contain_text(f"{ITEMS - 1} hits in")
    page.get_by_role("button", name="Remove the negative example c.png").click()
    for name in ("a.png", "c.png"):
        with next_search(page) as fields:
            page.get_by_role("button", name=f"Remove {name}", exact=True).click()
    assert fields == [("image", "file b.png"), ("positive", "file a.png"), ("positive", nearest)]
    expect(page.locator("#preview")).to_be_visible()
    expect(page.locator("#images")).to_be_hidden()
    page.locator(".hit .open").first.click()  # an item, of which examples may be images too
    expect(page.locator("#item-id")).not_to_be_empty()
    page.set_input_files("[data-kind=negative]", files[2])
    with next_search(page) as fields:
        page.locator("#search-examples").click()
    assert [name for name, _ in fields] == ["id", "negative"]
    expect(page.locator("#status")).to_contain_text(f"{ITEMS - 1} hits in")


def test_filter_its_error_and_no_match(page, query):
    pick(page, query)
    before = ids(page)
    where = page.get_by_label("Filter")
    where.fill("label ==")
    where.press("Enter")
    expect(page.locator("#where-error")).not_to_be_empty()
    expect(where).to_have_attribute("aria-invalid", "true")
    assert ids(page) == before
    where.fill("year >= 2020")
    where.press("Enter")
    expect(page.locator(".hit")).to_have_count(1)
    expect(page.locator("#where-error")).to_be_empty()
    page.get_by_label("Probability").select_option("0.95")
    where.fill("id == 'more/rocket2.jpg'")
    where.press("Enter")
    expect(page.locator("#empty-title")).to_have_text("No match")
    expect(page.locator("#empty-text")).to_contain_text("95 %")
    expect(page.locator(".hit")).to_have_count(0)


def test_a_slow_search_a_stopped_one_and_a_lost_connection(open_page, site, query):
    page = open_page(site)
    expect(page.locator(".hit")).to_have_count(ITEMS)
    page.clock.install()
    page.route("**/search*", lambda _route: None)  # never answered
    page.set_input_files("#file", query)
    expect(page.locator("#hits")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#slow")).to_be_hidden()
    page.clock.fast_forward(6000)
    expect(page.locator("#slow")).to_be_visible()
    page.locator("#stop").click()
    expect(page.locator("#status")).to_have_text("Stopped")
    page.unroute("**/search*")
    page.route("**/search*", lambda route: route.abort())
    page.locator("#search").click()
    expect(page.locator("#error-text")).to_contain_text("does not answer")
    page.unroute("**/search*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#status")).to_contain_text(f"{ITEMS} hits in")
    page.set_input_files("#file", {"name": "image.jpg", "mimeType": "image/jpeg", "buffer": b"not an image"})
    expect(page.locator("#error-text")).to_contain_text("The image cannot be read")
    expect(page.locator("#no-preview")).to_be_visible()


def enter_token(page, value):
    page.get_by_label("Token from").fill(value)
    page.get_by_role("button", name="Use the token").click()


def test_add_and_remove_items_with_a_token(page, query, site):
    page.get_by_role("button", name="Token").click()
    enter_token(page, "wrong")
    expect(page.locator("#token-error")).to_have_text("The token is not valid.")
    enter_token(page, site.tokens["read"])
    expect(page.locator("#token")).to_be_hidden()
    expect(page.locator(".hit")).to_have_count(ITEMS)
    expect(page.get_by_role("button", name="Add an item")).to_be_hidden()
    page.get_by_role("button", name="Token").click()
    enter_token(page, site.tokens["write"])
    page.get_by_role("button", name="Add an item").click()
    page.set_input_files("#add-image", query)
    page.get_by_label("Id", exact=True).fill("more/cat2.jpg")
    page.locator("#add-submit").click()
    expect(page.locator("#add-error")).to_contain_text("There is an item with this id")
    page.get_by_label("Id", exact=True).fill("new/ä b.png")
    page.get_by_label("Label", exact=True).fill("cat")
    page.get_by_label("Metadata").fill("year = 2026\ncode = 007\nsold = true")
    page.locator("#add-submit").click()
    expect(page.locator("#status")).to_have_text("Added new/ä b.png")
    item = site.service.indexes["small"].loaded.index.get("new/ä b.png")
    assert (item.label, item.metadata) == ("cat", {"year": 2026, "code": "007", "sold": True})
    pick(page, query, ITEMS + 1)
    assert ids(page)[0] == "new/ä b.png"
    page.locator(".hit .remove").first.click()
    page.locator("#remove-confirm").click()
    expect(page.locator("#status")).to_have_text("Removed new/ä b.png")
    expect(page.locator(".hit")).to_have_count(ITEMS)
    assert site.service.indexes["small"].loaded.index.get("new/ä b.png") is None
    assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]


def test_a_service_that_needs_a_token(open_page, folder, query):
    site = Site(folder, require_token=True)
    try:
        page = open_page(site)
        expect(page.locator("#error")).to_be_visible()
        page.get_by_role("button", name="Enter a token").click()
        enter_token(page, site.tokens["read"])
        expect(page.locator(".hit")).to_have_count(ITEMS)
        expect(page.locator(".hit .thumbnail").first).to_have_attribute("src", re.compile("^blob:"))
        page.reload()
        expect(page.locator(".hit")).to_have_count(ITEMS)
        page.get_by_role("button", name="Token").click()
        page.get_by_role("button", name="Forget it").click()
        expect(page.locator("#error")).to_be_visible()
        expect(page.locator(".hit")).to_have_count(0)
    finally:
        site.stop()


def test_the_choice_of_the_index(open_page, folder, query):
    shutil.copytree(folder / "small.index", folder / "other.index")
    site = Site(folder, ("small", "other"))
    site.service.indexes["other"].loaded.index.remove(["more/cat2.jpg"])
    try:
        page = open_page(site)
        expect(page.locator(".hit")).to_have_count(ITEMS)
        page.locator(".open").first.click()
        expect(page.locator("#status")).to_contain_text(f"{ITEMS - 1} hits in")
        page.get_by_label("Index", exact=True).select_option("other")  # an item is of one index, an image of any
        expect(page.locator("#status")).to_have_text(f"{ITEMS - 1} items in other")
        expect(page.get_by_label("Probability")).to_be_hidden()
        pick(page, query, ITEMS - 1)
        page.get_by_label("Index", exact=True).select_option("small")
        expect(page.locator("#status")).to_contain_text(f"{ITEMS} hits in")
        expect(page.get_by_label("Probability")).to_be_visible()
        page.locator(".open").first.click()
        expect(page.locator("#status")).to_contain_text(f"{ITEMS - 1} hits in")
        page.get_by_label("Index", exact=True).select_option("other")
        page.goto(f"{site.url}#id=more%2Fcat1.jpg&index=small")  # a link to an item
        expect(page.locator("#item-id")).to_have_text("more/cat1.jpg")
        expect(page.get_by_label("Index", exact=True)).to_have_value("small")
    finally:
        site.stop()


def test_dark_light_and_a_phone(open_page, site, query):
    backgrounds = {}
    for scheme in ("dark", "light"):
        page = open_page(site, color_scheme=scheme, **PHONE)
        backgrounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", backgrounds["dark"]))) < 150
    assert sum(map(int, re.findall(r"\d+", backgrounds["light"]))) > 600
    pick(page, query)
    page.get_by_role("button", name="Crop").tap()
    page.locator("[data-mark=positive]").first.tap()
    expect(page.locator("#examples")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("About", "Token"):
        page.get_by_role("button", name=name).tap()
        box = page.locator("dialog[open]").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        page.locator("dialog[open] .close").tap()


def test_the_card_of_the_model(page, site):
    page.get_by_role("button", name="About").click()
    card = page.locator("#about-content")
    served = site.service.indexes["small"]
    for text in (served.loaded.encoder.name, served.loaded.encoder.state, str(ITEMS), LEADERBOARD.reason):
        expect(card).to_contain_text(text)
    rows = card.locator("tr").all_inner_texts()
    assert [[text for text in re.split(r"\s*[\t\n]\s*", row) if text] for row in rows] == [
        ["Model", "hit@1", "95 % interval", "ms", "per image"],
        ["a + b", "ensemble, frozen", "0.900", "0.800 to 1.000", "–"],
        ["a (winner)", "single, frozen", "0.800", "0.700 to 0.900", "4.5"],
    ]
    page.keyboard.press("Escape")
    expect(page.locator("#about")).to_be_hidden()


def test_with_the_keyboard_only(page, query):
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the hits")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#hits")).to_be_focused()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")  # search with the first item
    expect(page.locator("#status")).to_contain_text(f"{ITEMS - 1} hits in")
    expect(page.locator("#hits")).to_be_focused()
    for key in ("Tab", "Tab", "Space"):
        page.keyboard.press(key)
    expect(page.locator("#positive li")).to_have_count(1)
    page.get_by_label("Filter").focus()
    page.keyboard.type("not id == 'more/cat2.jpg'")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("hits in")
    page.get_by_role("button", name="Token").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Token from")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Token")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_complaint(open_page, site, query, scheme):
    axe = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))
    if not axe.is_file():
        pytest.skip("set AXE_CORE to the file axe.min.js of the npm package axe-core")
    page = open_page(site, color_scheme=scheme)
    page.evaluate(axe.read_text())
    complaints = []

    def check(state):
        for rule in page.evaluate("axe.run()")["violations"]:
            complaints.extend((state, rule["id"], node["html"][:200]) for node in rule["nodes"])

    expect(page.locator(".hit")).to_have_count(ITEMS)
    check("first")
    pick(page, query)
    page.get_by_role("button", name="Crop").click()
    page.locator("[data-mark=positive]").first.click()
    check("hits")
    for name in ("About", "Token"):
        page.get_by_role("button", name=name).click()
        check(name)
        page.keyboard.press("Escape")
    assert complaints == []
