"""The report in a real browser: no console message, no request, its plots on the screen, light and dark and on paper.

Wants Chromium (Debian: apt-get install chromium-headless-shell). Without one these tests are skipped, and fail in CI.
"""

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tsconvert.evaluate.report.page import ReportConfig, report

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)

LIGHT = {"page": "f7f6f3", "bars": "3a6ea5", "dashes": "d8632a", "first layer": "e9a23b", "last layer": "3347b4"}
DARK = {"page": "14161a", "bars": "6ba3dc", "dashes": "f08b54", "first layer": "f2bd68", "last layer": "7c8df2"}


@pytest.fixture(autouse=True, scope="module")
def _chromium() -> None:
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium: apt-get install chromium-headless-shell")


def opened(page: Path, *options: str) -> tuple[list[str], list[str]]:
    """Open a page; its console messages and the addresses that it asked for."""
    log = page.with_suffix(".net.json")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,5000",
        "--enable-logging=stderr", f"--log-net-log={log}", f"--user-data-dir={page.parent / 'profile'}", *options,
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    asked = [
        event["params"]["url"] for event in json.loads(log.read_text())["events"] if "url" in event.get("params", {})
    ]
    return console, asked


def colours(picture: Path) -> Counter[str]:
    """How many pixels have each colour."""
    with Image.open(picture) as image:
        found = image.convert("RGB").getcolors(1 << 24)
    assert found
    return Counter({f"{r:02x}{g:02x}{b:02x}": count for count, (r, g, b) in found})


@pytest.fixture(scope="module")
def page(whole_chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    report(ReportConfig(folder=whole_chain, out=out))
    return out


def test_the_way_of_looking_sees_what_it_is_to_see(tmp_path: Path):
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("here")</script>')
    console, asked = opened(page, f"--screenshot={tmp_path / 'shot.png'}")
    assert len(console) == 1
    assert "http://127.0.0.1:9/x.png" in asked


@pytest.mark.parametrize(("scheme", "expected"), [("light", LIGHT), ("dark", DARK)])
def test_the_page_opens_in_silence_and_shows_its_plots(page: Path, scheme: str, expected: dict[str, str]):
    shot = page.with_name(f"{scheme}.png")
    preferred = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    assert opened(page, f"--screenshot={shot}", *preferred) == ([], [])
    seen = colours(shot)
    least = {"page": 500_000, "bars": 20_000, "dashes": 300, "first layer": 200, "last layer": 200}
    assert {name: seen[expected[name]] >= pixels for name, pixels in least.items()} == dict.fromkeys(least, True)


def test_it_prints(page: Path):
    paper = page.with_name("paper.pdf")
    assert opened(page, f"--print-to-pdf={paper}", "--blink-settings=preferredColorScheme=0") == ([], [])
    assert paper.read_bytes().startswith(b"%PDF-")
