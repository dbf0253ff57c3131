"""The demo's report on a phone, in a real browser."""

from __future__ import annotations

from pathlib import Path

from selenium import webdriver

from cutline.demo.report import render
from cutline.testing.browser import resize
from tests.demo.test_report import OUTCOMES, RESULT
from tests.page.conftest import PHONE


def test_nothing_of_the_report_is_wider_than_a_phone(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(RESULT, OUTCOMES))
    resize(chromium, PHONE)
    chromium.get(file.as_uri())
    width, *scrolled = chromium.execute_script(
        "return [document.documentElement.scrollWidth,"
        " ...[...document.querySelectorAll('.scroll')].map((one) => one.scrollWidth - one.clientWidth)]"
    )
    assert width <= PHONE[0]
    assert scrolled == [0, 0]
    opening = chromium.find_element("css selector", "header").text
    assert RESULT.target.identity not in opening
    assert RESULT.target.identity in chromium.find_element("css selector", "footer").text
    chromium.get("about:blank")
