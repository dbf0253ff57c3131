"""A browser on another machine: over TLS, with a token or a link, and no page of others uses its cookie."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from selenium import webdriver

from cutline.cli.access.certificates import SERVER, Authority
from cutline.protos.channel.token_file import token_entry
from cutline.testing.browser import browser
from tests.page.conftest import Page
from tests.page.test_reach import violations

TOKEN = "a token; with what cookies do not take"


@dataclass(frozen=True, slots=True)
class Served:
    """An agent as others reach it: its address, and the link that it printed at its start."""

    url: str
    link: str


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`cutline edge` of the demo's drafter beyond loopback: over TLS, with tokens."""
    folder = tmp_path_factory.mktemp("keys")
    authority = Authority.make(folder)
    pair = authority.sign("server", SERVER, hosts=["localhost"])
    authority.write()
    (folder / "tokens.toml").write_text(token_entry("operator", TOKEN))
    tls = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
    keys = (*tls, "--api-tokens", str(folder / "tokens.toml"))
    command = [sys.executable, "-m", "cutline.cli", "edge", "--listen", "0.0.0.0:0", "--threads", "1", *keys]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip().rpartition(":")[2]
            link = process.stdout.readline().strip().rpartition(" ")[2]
            url = f"https://localhost:{port}/"
            yield Served(url, url + link.rpartition("/")[2])
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def phone(chromium: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """A browser that takes the certificate, as a phone does that was given its authority's."""
    del chromium  # where there is none, nothing of this is tried
    driver = browser("ignore-certificate-errors")
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture
def page(phone: webdriver.Chrome, agent: Served) -> Iterator[Page]:
    phone.get(agent.url)
    phone.delete_all_cookies()
    page = Page(phone, agent.url)
    phone.get(agent.url)
    yield page
    phone.get("about:blank")


def log_in(page: Page, token: str) -> None:
    field = page.one("#token")
    field.clear()
    field.send_keys(token)
    page.one("button").click()


def is_in(page: Page) -> bool:
    return bool(page.all("#now")) and page.one("#now").get_attribute("data-state") != "unknown"


def test_a_form_asks_for_the_token_and_a_cookie_keeps_it(page: Page, agent: Served) -> None:
    assert page.driver.title == "Cutline: log in"
    log_in(page, "another")
    page.until(lambda: page.all("[role=alert]"))
    assert page.driver.get_cookies() == []
    log_in(page, TOKEN)
    page.until(lambda: is_in(page))
    (cookie,) = page.driver.get_cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (
        *("__Host-cutline", True, True, "Strict"),
    )
    assert page.run("return document.cookie") == ""
    page.driver.refresh()
    page.until(lambda: is_in(page))


def test_a_link_lets_one_browser_in(page: Page, agent: Served) -> None:
    page.driver.get(agent.link)
    page.driver.get(agent.link)  # to look at it uses it up as little as a preview does
    page.one("button").click()
    page.until(lambda: is_in(page))
    assert page.driver.current_url == agent.url, "the code stays in no address"
    page.driver.delete_all_cookies()
    page.driver.get(agent.link)
    page.one("button").click()
    page.until(lambda: page.all("[role=alert]"))


def test_the_form_is_for_everybody(page: Page) -> None:
    assert page.one("button").value_of_css_property("border-radius") == "10px", "its style counts"
    assert violations(page) == []


def test_who_is_in_no_more_is_told(page: Page, agent: Served) -> None:
    log_in(page, TOKEN)
    page.until(lambda: is_in(page))
    page.driver.delete_all_cookies()
    page.one("#question").send_keys("What?\n")
    page.shows(".answer", "log in")
