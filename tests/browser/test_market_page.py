"""The market page in a real browser, where there is one."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
BROWSER_SECONDS_MAX = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed on this machine"),
    pytest.mark.django_db(transaction=True),
]


def browse(url: str, *flags: str, profile: Path) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--enable-logging=stderr", *flags, url),
    ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=BROWSER_SECONDS_MAX, check=False
    )


class TestMarketPage:
    @pytest.mark.parametrize("width", [1280, 500])
    def test_renders_without_a_complaint_of_the_browser(
        self, live_server: Any, tmp_path: Path, width: int
    ) -> None:
        cache.clear()
        picture = tmp_path / "market.png"
        result = browse(
            live_server.url + "/",
            f"--screenshot={picture}",
            f"--window-size={width},900",
            profile=tmp_path / "profile",
        )
        assert result.returncode == 0, result.stderr
        assert picture.stat().st_size > 5_000
        # What the page's own policy refuses, the browser writes to its console.
        assert "CONSOLE" not in result.stderr

    def test_puts_the_banner_before_the_offers(self, live_server: Any, tmp_path: Path) -> None:
        cache.clear()
        dom = browse(live_server.url + "/", "--dump-dom", profile=tmp_path / "profile").stdout
        assert (
            0 < dom.index("Simulated hardware and payments.") < dom.index("GPUs on offer now</h1>")
        )
