"""Take docs/how-to/page.png: the page in a real browser, with the demo's drafter and a real worker.

The link goes down in the middle of the answer. Needs what scripts/browser.sh installs; run with PYTHONPATH=.dev.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from cutline.demo.publish import EXAMPLES
from cutline.devices.link import load_link
from cutline.edge.generation.events import Settled
from cutline.testing.browser import Served, browser, resize, served

OUT = Path(__file__).resolve().parents[1] / "docs/how-to/page.png"
SIZE = (1280, 900)
COLOURS = 256  # enough for a page of few colours, and under 200 KB
SECONDS = 30


def main() -> None:
    """Ask, cut the link in the middle of the answer, restore it, and write the picture."""
    driver = browser()
    try:
        with served(load_link("4g")) as agent:
            resize(driver, SIZE, prefers_reduced_motion="reduce")
            driver.get(agent.address)
            driver.execute_script("document.querySelector('[value=draft]').click()")
            driver.find_element(By.ID, "files").send_keys(str(EXAMPLES / "card2.png"))
            _wait(driver, "#pictures img")
            _ask_over_dying_link(driver, agent)
            driver.find_element(By.CSS_SELECTOR, ".foot .plain:last-child").click()
            driver.execute_script("scrollTo(0, 0); document.activeElement.blur()")
            shot = Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
            shot.quantize(COLOURS, dither=Image.Dither.NONE).save(OUT, optimize=True)
            driver.get("about:blank")
    finally:
        driver.quit()
    print(f"{OUT.name}: {OUT.stat().st_size / 1e3:.0f} kB")


def _ask_over_dying_link(driver: webdriver.Chrome, agent: Served) -> None:
    agent.agent.heed = lambda event: agent.link.cut() if isinstance(event, Settled) else None
    _ask(driver, "Describe the card.")
    _wait(driver, ".turn:last-child .loss")
    agent.agent.heed = lambda event: None
    agent.restore()
    _wait(driver, ".turn:last-child[data-over]")


def _ask(driver: webdriver.Chrome, text: str) -> None:
    driver.find_element(By.ID, "question").send_keys(text + Keys.ENTER)


def _wait(driver: webdriver.Chrome, selector: str) -> None:
    WebDriverWait(driver, SECONDS, 0.05).until(lambda _: driver.find_elements(By.CSS_SELECTOR, selector))


if __name__ == "__main__":
    main()
