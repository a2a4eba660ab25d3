"""The page in a real browser, against a real server."""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import CLASSES, TRAIN_COUNTS, draw
from tests.serving.conftest import CHROMIUM, CHROMIUM_FLAGS, running, web

PHONE = {"width": 360, "height": 740}
KEY = "schlüssel"

expect.set_options(timeout=30_000)
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"the browser is needed: install {CHROMIUM}")

MakeFile = Callable[..., Path]

CONTRASTS = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (color) => {
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(
            (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const background = (node) => {
        const color = getComputedStyle(node).backgroundColor;
        return color !== "rgba(0, 0, 0, 0)" || !node.parentElement ? color : background(node.parentElement);
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
        const both = [luminance(getComputedStyle(node).color), luminance(background(node))];
        const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
        found.push([walker.currentNode.textContent.trim(), contrast]);
    }
    return found;
}"""
"""Every visible text of the page with its contrast, as WCAG 2 defines it."""

DROP = """(data) => {
    const transfer = new DataTransfer();
    for (const [name, type, bytes] of data.files) transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
    const options = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
    const event = data.event === "paste" ? new ClipboardEvent("paste", options) : new DragEvent(data.event, options);
    return document.body.dispatchEvent(event);
}"""
"""Drops or pastes files, as the browser does when a person lets go of them; returns whether the browser may go on."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    """The page, opened; at the end it must have asked no other server, and its console must be empty."""
    yield from opened(browser, server)


@pytest.fixture(scope="module")
def guarded_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for a key, and has room for one image at a time."""
    folder = tmp_path_factory.mktemp("guarded")
    with running(tiny_model, folder, TAILSTACK_API_KEYS=KEY, TAILSTACK_MAX_QUEUE="1") as server:
        yield server.address


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Writes a picture of one shape under a name; the name's ending tells the format."""

    def make(name: str, shape: str = "disc", seed: int = 0) -> Path:
        path = tmp_path / name
        Image.fromarray(draw(shape, np.random.default_rng(seed))).resize((320, 240)).save(path)
        return path

    return make


def opened(browser: Browser, address: str) -> Iterator[Page]:
    page = browser.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    yield page
    page.close()
    assert asked
    assert not [url for url in asked if not url.startswith((f"{address}/", f"blob:{address}/"))]
    # The browser itself writes a line for each answer that is an error, and those are wanted here.
    assert not [text for text in complaints if not text.startswith("Failed to load resource")]


def test_a_chosen_picture_is_classified(page: Page, server: str, make_file: MakeFile) -> None:
    path = make_file("disc.png")
    answer = web.post(f"{server}/classify", content=path.read_bytes()).json()
    page.get_by_label("Choose pictures").set_input_files(path)
    card = page.get_by_role("article", name="disc.png")
    classes = card.get_by_role("list", name="Most probable classes").get_by_role("listitem")
    expect(classes).to_have_count(5)
    for item, prediction in zip(classes.all(), answer["predictions"], strict=True):
        expect(item).to_have_text(f"{prediction['label']}{100 * prediction['probability']:.1f} %")
        width = item.locator(".fill").bounding_box()["width"] / item.locator(".track").bounding_box()["width"]
        assert width == pytest.approx(prediction["probability"], abs=0.02)
    votes = card.get_by_role("list", name="Votes of the learners").get_by_role("listitem")
    for item, vote in zip(votes.all(), answer["learners"], strict=True):
        expect(item).to_contain_text(vote["learner"])
        expect(item).to_contain_text(vote["label"])
        expect(item).to_contain_text("agrees" if vote["agrees"] else "differs")
    expect(card).to_contain_text(re.compile(rf"\d+ ms, .*{answer['model']['version']}"))
    agreeing = sum(vote["agrees"] for vote in answer["learners"])
    expect(card).to_contain_text("All 2 learners agree" if agreeing == 2 else f"{agreeing} of 2 learners agree")
    expect(page.get_by_role("status")).to_contain_text(answer["predictions"][0]["label"])


def test_several_pictures_each_have_their_answer_or_their_error(page: Page, make_file: MakeFile) -> None:
    good, tiff, broken = (
        make_file("ring.jpg", "ring"),
        make_file("cross.tiff", "cross"),
        make_file("square.png", "square"),
    )
    broken.write_bytes(broken.read_bytes()[:-2000])
    page.get_by_label("Choose pictures").set_input_files([good, broken, tiff])
    expect(page.get_by_role("status")).to_have_text("2 of 3 classified.")
    cards = page.get_by_role("region", name="Results").get_by_role("article")
    assert [card.get_attribute("aria-label") for card in cards.all()] == ["ring.jpg", "square.png", "cross.tiff"]
    expect(cards.nth(1)).to_contain_text("the image is damaged or cut short")
    expect(cards.nth(0).locator("img")).to_be_visible()
    # Chromium can't show a TIFF, and a broken picture's sign would say that the answer is wrong.
    expect(cards.nth(2).locator("img")).to_be_hidden()


def test_what_is_no_picture_is_refused(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    page.get_by_label("Choose pictures").set_input_files(tmp_path / "notes.txt")
    expect(page.get_by_role("status")).to_have_text("There is no picture among these.")
    (tmp_path / "notes.png").write_text("no picture either")
    page.get_by_label("Choose pictures").set_input_files(tmp_path / "notes.png")
    expect(page.get_by_role("status")).to_contain_text("notes.png: not an image that is read here")


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_dropped_and_pasted_pictures(page: Page, make_file: MakeFile, event: str) -> None:
    data = list(make_file("ring.png", "ring").read_bytes())
    page.evaluate(DROP, {"event": event, "files": [["ring.png", "image/png", data]]})
    card = page.get_by_role("article", name="ring.png")
    expect(card.get_by_role("list", name="Most probable classes").get_by_role("listitem")).to_have_count(5)


def test_a_drop_beside_the_field_does_not_leave_the_page(page: Page) -> None:
    for event in ("dragover", "drop"):
        assert page.evaluate(DROP, {"event": event, "files": []}) is False


def test_by_keyboard_alone(page: Page, make_file: MakeFile) -> None:
    path = make_file("disc.png")
    # Listening begins well before the key: `expect_file_chooser` doesn't wait until the browser has heard of it.
    page.on("filechooser", lambda chooser: chooser.set_files(path))
    expect(page.get_by_role("complementary", name="The model")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Choose pictures")).to_be_focused()
    assert page.locator("#drop").evaluate("(node) => getComputedStyle(node).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="disc.png").get_by_role("listitem").first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_text("All 6 classes")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("complementary").get_by_text("gradient 6")).to_be_visible()


def test_the_models_card(page: Page, server: str) -> None:
    model = web.get(f"{server}/model").json()
    card = page.get_by_role("complementary", name="The model")
    for text in (
        model["version"],
        model["technique"],
        "32 \N{MULTIPLICATION SIGN} 32 pixels",
        f"{100 * model['accuracy']['top1']:.1f} %",
    ):
        expect(card).to_contain_text(text)
    for learner in model["learners"]:
        expect(card.get_by_role("row", name=learner["architecture"])).to_contain_text(str(learner["resolution"]))
    most, least = max(TRAIN_COUNTS), min(TRAIN_COUNTS)
    tail = card.get_by_role("img", name=f"From {most} images (disc) to {least} images (ring).")
    expect(tail.locator("rect")).to_have_count(len(CLASSES))
    expect(page.get_by_role("banner")).to_contain_text("2 networks that tell 6 classes apart")


def test_everything_has_a_name(page: Page, make_file: MakeFile) -> None:
    page.get_by_label("Choose pictures").set_input_files(make_file("disc.png"))
    expect(page.get_by_role("article", name="disc.png").get_by_role("listitem").first).to_be_visible()
    snapshot = page.locator("body").aria_snapshot()
    assert not re.findall(r"- (?:button|link|textbox|img|region|article):?$", snapshot, re.MULTILINE), snapshot
    assert page.locator("html").get_attribute("lang") == "en"
    headings = [int(node.evaluate("(node) => node.tagName[1]")) for node in page.get_by_role("heading").all()]
    assert headings[0] == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(headings))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(page: Page, make_file: MakeFile, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    broken = make_file("broken.png")
    broken.write_bytes(broken.read_bytes()[:-2000])
    page.get_by_label("Choose pictures").set_input_files([make_file("disc.png"), broken])
    expect(page.get_by_role("status")).to_have_text("1 of 2 classified.")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 40
    assert not [(text, ratio) for text, ratio in contrasts if ratio < 4.5]


def test_a_phone_needs_no_scrolling_sideways(page: Page, make_file: MakeFile) -> None:
    page.set_viewport_size(PHONE)
    long = make_file("a-very-long-name-without-a-place-to-break-it" * 3 + ".png")
    page.get_by_label("Choose pictures").set_input_files(long)
    expect(page.get_by_role("article").get_by_role("listitem").first).to_be_visible()
    page.get_by_text("All 6 classes").click()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_the_key_form_and_a_full_server(browser: Browser, guarded_server: str, make_file: MakeFile) -> None:
    for page in opened(browser, guarded_server):
        field = page.get_by_label("This server asks for an API key")
        expect(field).to_be_focused()
        names = [f"{number}.png" for number in range(6)]
        page.get_by_label("Choose pictures").set_input_files([make_file(name) for name in names])
        field.fill("another key")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("the API key is wrong")
        field.fill(KEY)
        page.get_by_role("button", name="Use it").click()
        # Nothing has to be asked for again: the pictures wait for the key, and then for room.
        expect(page.get_by_role("status")).to_have_text("6 of 6 classified.")
        expect(page.get_by_role("complementary", name="The model")).to_be_visible()
        expect(field).to_be_hidden()
        page.reload()
        expect(page.get_by_role("complementary", name="The model")).to_be_visible()


def test_a_server_that_is_gone_is_said_to_be(browser: Browser, server: str, make_file: MakeFile) -> None:
    for page in opened(browser, server):
        page.context.set_offline(True)
        page.get_by_label("Choose pictures").set_input_files(make_file("disc.png"))
        expect(page.get_by_role("status")).to_have_text("The server can't be reached.")


def test_the_page_runs_nothing_but_its_own_files(server: str) -> None:
    response = web.get(server)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy
    assert "frame-ancestors 'none'" in policy
    html = response.text
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", html)
    assert not re.findall(r"<script(?![^>]*src=)|\son\w+=|style=\"", html)
