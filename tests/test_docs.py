"""The built pages in a browser: nothing from elsewhere, no errors, a search that finds."""

import pathlib

import pytest

from tests import browser as browsers

BUILT = pathlib.Path(__file__).parents[1] / "docs" / "_build" / "html"
PAGES = ("index.html", "papers/segnet.html", "papers/densecrf.html", "tasks/own_data.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (BUILT / "searchindex.js").exists():
        pytest.skip("needs the built pages: make docs")
    with browsers.start(BUILT, tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.mark.parametrize("page", PAGES)
def test_a_page_asks_for_nothing_from_elsewhere_and_fits_a_phone(browser, page):
    browsers.forget(browser)
    browser.get(browser.address + page)
    assert browser.get_log("browser") == []
    urls = [url for url in browsers.requests(browser) if not url.startswith("data:")]
    assert urls and all(url.startswith(browser.address) for url in urls)
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.get(browser.address + page)
        widths = "return [document.documentElement.scrollWidth, innerWidth]"
        assert browser.execute_script(widths) == [390, 390]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(("words", "page"), [("unpool", "papers/segnet"), ("lattice", "densecrf")])
def test_search_finds_the_page(browser, words, page):
    from selenium.webdriver.support.wait import WebDriverWait

    browsers.forget(browser)
    browser.get(f"{browser.address}search.html?q={words}")
    links = "#search-results li a"  # one after the other

    def found(browser):
        here = browser.find_elements("css selector", links)
        return any(page in link.get_attribute("href") for link in here)

    WebDriverWait(browser, 20).until(found)
    assert browser.get_log("browser") == []
