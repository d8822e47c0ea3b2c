"""Chromium before a folder that is served on this machine alone."""

import contextlib
import functools
import http.server
import json
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str]  # every path that was requested

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def start(folder: pathlib.Path, profile: pathlib.Path) -> Iterator[Any]:
    """Yields a browser; its `address` is that of the folder, `asked` lists the paths it asked for.

    Skips the test where Selenium or Chromium is missing.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    chromium, chromedriver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and chromedriver):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *("disable-dev-shm-usage", f"user-data-dir={profile}"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    asked = []
    handler = functools.partial(type("Handler", (Quiet,), {"asked": asked}), directory=str(folder))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
        stack.callback(driver.quit)
        driver.asked = asked
        driver.address = f"http://127.0.0.1:{server.server_port}/"
        yield driver


def forget(driver: Any) -> None:
    """Leaves the page, and drops what the browser has logged so far."""
    driver.set_window_size(1280, 900)
    driver.get("about:blank")
    for kind in ("browser", "performance"):
        driver.get_log(kind)


def requests(driver: Any) -> list[str]:
    """Returns the addresses that the browser asked for since its log was read last."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
