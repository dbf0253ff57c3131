"""How soon the page shows what the drafter knows: `python -m cutline.bench.page`.

The drafter's own first words, from the question's arrival at the agent, beside the first words on the screen, from the
press of Enter: over an emulated link, and over the same link while nothing arrives. What lies between is the upload of
the picture on loopback, HTTP, the page, and the wait for the next frame of the screen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from time import sleep

from rich.console import Console
from rich.progress import track
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from cutline.demo.publish import EXAMPLES
from cutline.devices.link import load_link
from cutline.testing.browser import WIDE, Served, browser, resize, served

SECONDS = 20  # that a question may take
PAUSE = 0.2  # seconds from the last letter to Enter, as when a person types
WATCH = """
window.pressed = window.painted = null;
addEventListener("keydown", (event) => { if (event.key === "Enter") window.pressed = event.timeStamp; }, true);
new MutationObserver(() => {
  if (window.painted !== null || document.querySelector(".text")?.textContent === "") return;
  window.painted = 0;
  setTimeout(() => { window.painted = performance.now(); }); // the page changes as a frame begins; this is after it
}).observe(document.getElementById("turns"), {childList: true, subtree: true, characterData: true});
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--link", default="4g")
    args = parser.parse_args()
    console = Console()
    driver = browser()
    try:
        with served(load_link(args.link)) as agent:
            for name, dead in ((args.link, False), (f"{args.link}, nothing arrives", True)):
                runs = [first_words(driver, agent, dead=dead) for _ in track(range(args.runs), name)]
                console.print(f"{name}: {_summary(runs)}")
    finally:
        driver.quit()


def first_words(driver: webdriver.Chrome, agent: Served, *, dead: bool) -> tuple[float, float]:
    """Milliseconds until the drafter had its first words, and until they stood on the screen."""
    resize(driver, WIDE)
    driver.get(agent.address)
    driver.find_element(By.ID, "files").send_keys(str(EXAMPLES / "card1.png"))
    wait = WebDriverWait(driver, SECONDS, 0.01)
    wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, "#pictures img"))
    driver.execute_script("document.querySelector('[value=draft]').checked = true")
    driver.execute_script(WATCH)
    known = len(agent.agent.first_seconds)
    if dead:
        agent.cut()
    question = driver.find_element(By.ID, "question")
    question.send_keys("Describe the card.")
    sleep(PAUSE)
    question.send_keys(Keys.ENTER)
    wait.until(lambda _: driver.execute_script("return window.painted > 0"))
    shown: float = driver.execute_script("return window.painted - window.pressed")
    if dead:
        question.send_keys(Keys.ESCAPE)
        agent.restore()
    wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, ".answer[data-over]"))
    return agent.agent.first_seconds[known] * 1e3, shown


def _summary(runs: Sequence[tuple[float, float]]) -> str:
    own, shown = zip(*runs, strict=True)
    later = [b - a for a, b in runs]
    return (
        f"the drafter's first words after {median(own):.1f} ms, on the screen after {median(shown):.1f} ms; "
        f"later by {median(later):.1f} ms, {max(later):.1f} ms at worst of {len(runs)}"
    )


if __name__ == "__main__":
    main()
