"""The page of a run in a real Chromium: nothing is asked of a network, nothing in the data acts, and it can be read."""

from __future__ import annotations

import base64
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rerank_cli.cli import main
from tests.conftest import write_lines

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its chromedriver is installed")

HOSTILE = [
    "<script>document.title='pwned'</script>", "<img src=http://127.0.0.1:{port}/x onerror=document.title='pwned'>",
    "</style><svg onload=document.title='pwned'>", "\"><iframe src=http://127.0.0.1:{port}/y></iframe>",
    "<link rel=stylesheet href=http://127.0.0.1:{port}/z>", "<style>@import 'http://127.0.0.1:{port}/w'</style>",
    "javascript:document.title='pwned'", "a\u202eb\x1b[2J", "x" * 3000,
]  # fmt: skip
SIZES = {"phone": 360, "tablet": 768, "desktop": 1280}


class Heard(http.server.BaseHTTPRequestHandler):
    """Writes down what it is asked."""

    paths: ClassVar[list[str]] = []  # one server a session

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def listener() -> Iterator[int]:
    """The port of a server that no page should ask anything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Heard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, listener: int, tiny_model: str) -> Path:
    """The page of a run over hostile rows, with judgements, cut passages and bad rows."""
    folder = tmp_path_factory.mktemp("report")
    texts = [text.replace("{port}", str(listener)) for text in HOSTILE]
    rows: list[Any] = [
        {"query_id": f"q{n}", "query": texts[n % len(texts)], "passages": [
            {"id": f"p{k}", "text": f"{texts[(n + k) % len(texts)]} {'word ' * (k * 17 % 700)}"} for k in range(12)
        ]}
        for n in range(20)
    ]  # fmt: skip
    rows += [{"query_id": text, "query": 5, "passages": [text]} for text in texts]
    rows += [{"query_id": text, "query": "q", "passages": "none"} for text in texts]
    qrels = folder / "qrels.txt"
    qrels.write_text("".join(f"q{n} 0 p{k} {(n + k) % 3 == 0:d}\n" for n in range(20) for k in range(12)))
    name = str(folder / "<b>in.jsonl")
    arguments = ["rerank-file", write_lines(Path(name), rows), "-o", str(folder / "out.jsonl"), "--model", tiny_model]
    more = ["--qrels", str(qrels), "--metric", "nDCG@10", "--metric", "RR", "--report", str(folder / "run.html"), "-q"]
    assert main([*arguments, *more]) == 3
    return folder / "run.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = Options()
    options.binary_location = BROWSER or ""
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


def show(chromium: Any, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
    phone = width < 500
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": phone}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chromium.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    chromium.get(page.as_uri())


def requests(chromium: Any) -> list[str]:
    """What was asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    urls = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    # What the browser loads for a page of its own, the new tab, and what stands in a page itself.
    return [url for url in urls if not url.startswith(("chrome:", "data:"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES.values(), ids=SIZES)
def test_the_console_is_silent_and_only_the_file_is_asked_for(
    chromium: Any, report: Path, width: int, scheme: str
) -> None:
    requests(chromium)
    show(chromium, report, width=width, scheme=scheme)
    chromium.execute_script("document.querySelectorAll('details').forEach(found => found.open = true)")
    assert chromium.get_log("browser") == []
    assert set(requests(chromium)) <= {report.as_uri()}
    assert Heard.paths == []


def test_hostile_ids_and_texts_are_text(chromium: Any, report: Path, listener: int) -> None:
    show(chromium, report)
    assert chromium.title == "out.jsonl – rerank-cli report"  # noqa: RUF001 (a dash, as on the page)
    count = "return document.querySelectorAll(arguments[0]).length"
    for tag in (
        "script",
        "img",
        "iframe",
        "object",
        "a",
        "form",
        "b b",
        "link[rel=stylesheet]",
        "[onload]",
        "[onerror]",
    ):
        assert chromium.execute_script(count, tag) == 0, tag
    assert chromium.execute_script(count, "style") == 1
    shown = chromium.execute_script("return document.getElementById('errors').textContent")
    for text in HOSTILE[:3]:
        assert text.replace("{port}", str(listener)) in shown
    assert "<b>in.jsonl:21" in shown


def test_a_script_that_was_written_into_the_page_would_not_run(
    chromium: Any, report: Path, tmp_path: Path, listener: int
) -> None:
    planted = tmp_path / "planted.html"
    attack = f"<script>document.title='pwned'</script><img src=http://127.0.0.1:{listener}/planted>"
    planted.write_text(report.read_text().replace("</main>", f"{attack}</main>"))
    show(chromium, planted)
    assert chromium.title.startswith("out.jsonl")
    assert any("Content Security Policy" in entry["message"] for entry in chromium.get_log("browser"))
    assert Heard.paths == []


@pytest.mark.parametrize("width", SIZES.values(), ids=SIZES)
def test_nothing_is_wider_than_the_screen(chromium: Any, report: Path, width: int) -> None:
    show(chromium, report, width=width)
    chromium.execute_script("document.querySelectorAll('details').forEach(found => found.open = true)")
    wide = """
        const wide = [...document.querySelectorAll('body *')].filter(found =>
            !found.closest('.scroll') && !found.closest('svg') && found.getBoundingClientRect().right > innerWidth + 1);
        return [document.documentElement.scrollWidth, wide.map(found => found.outerHTML.slice(0, 80))]"""
    scrolled, wider = chromium.execute_script(wide)
    assert scrolled <= width  # less where there is a scroll bar
    assert wider == []


def test_an_evaluation_is_no_wider_than_a_phone_a_tablet_and_paper(chromium: Any, report: Path) -> None:
    page = report.with_name("evaluation.html")
    scored = str(report.with_name("out.jsonl"))
    shutil.copy(scored, other := str(report.with_name("other.jsonl")))
    asked = ["evaluate", scored, other, "--qrels", str(report.with_name("qrels.txt")), "-q", "--overwrite"]
    assert main([*asked, "-o", str(page)]) == 0
    for media, width in (("", SIZES["phone"]), ("", SIZES["tablet"]), ("print", 680)):  # A4 less its margins
        show(chromium, page, width=width)
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
        wide = """
            return [...document.querySelectorAll('table')].filter(found =>
                (arguments[0] || !found.closest('.scroll')) && found.getBoundingClientRect().right > innerWidth + 1
            ).map(found => found.outerHTML.slice(0, 300))"""
        assert chromium.execute_script(wide, media) == [], (media, width)  # paper cannot be scrolled


def test_charts_are_as_wide_as_their_place_and_have_labels(chromium: Any, report: Path) -> None:
    show(chromium, report, width=SIZES["phone"])
    charts = chromium.execute_script(
        """return [...document.querySelectorAll('svg')].filter(found => found.checkVisibility()).map(found =>
            [found.getAttribute('role'), found.ariaLabel, found.getBoundingClientRect().width,
             found.parentElement.clientWidth])"""
    )
    assert len(charts) > 12
    for role, label, width, room in charts:
        assert role == "img"
        assert label
        assert 40 < width <= room
    drawn = chromium.execute_script(
        "return [...document.querySelectorAll('rect.bar')].map(bar => bar.getBBox().height)"
    )
    assert len(drawn) > 30
    assert all(height > 0 for height in drawn)


def _colours(chromium: Any) -> tuple[list[int], list[int]]:
    style = "const s = getComputedStyle(document.querySelector(arguments[0])); return s[arguments[1]]"
    found = [chromium.execute_script(style, "body", name) for name in ("backgroundColor", "color")]
    back, ink = ([int(part) for part in text[4:-1].split(",")] for text in found)
    return back, ink


def _light(colour: list[int]) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_dark_screen_gets_dark_paper_and_both_can_be_read(chromium: Any, report: Path) -> None:
    found = {}
    for scheme in ("light", "dark"):
        show(chromium, report, scheme=scheme)
        found[scheme] = _colours(chromium)
        lights = sorted(map(_light, found[scheme]))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) > 7
    assert _light(found["light"][0]) > 0.9
    assert _light(found["dark"][0]) < 0.1


def test_it_prints_on_white_paper(chromium: Any, report: Path) -> None:
    show(chromium, report, scheme="dark")
    printed = chromium.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    data = base64.b64decode(printed["data"])
    assert data.startswith(b"%PDF-")
    assert (
        1 <= data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") <= 10
    )  # two of them are the queries that changed most
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert _colours(chromium) == ([255, 255, 255], [0, 0, 0])
