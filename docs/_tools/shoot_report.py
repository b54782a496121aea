"""Take the screenshots of the report that the documentation shows, of the embedded pair over the demo photographs.

    actstats demo --out actstats-demo
    python docs/_tools/shoot_report.py actstats-demo/report.html

Needs Chromium and playwright (extra `browser`). Writes into `docs/assets`.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ASSETS = Path(__file__).parents[1] / "assets"


class Shot(NamedTuple):
    """One screenshot.

    Attributes:
        name: of the file, without its ending.
        view: the address after the page's name.
        size: of the window, in points.
        scale: pixels per point.
        scheme: light or dark.
        script: JavaScript to run before the screenshot is taken.
    """

    name: str
    view: str
    size: tuple[int, int]
    scale: int
    scheme: str
    script: str = ""


SHOTS = (
    Shot("report", "", (1240, 900), 1, "light"),
    Shot("report-unit", "#/unit/{unit}", (1240, 900), 1, "light"),
    Shot("report-unit-dark", "#/unit/{unit}", (1240, 900), 1, "dark"),
    Shot("report-phone-dark", "#/layer/{layer}", (390, 760), 2, "dark", "scrollTo(0, 1310)"),
    Shot(
        "report-phone-light",
        "",
        (390, 760),
        2,
        "light",
        "document.querySelector('.findings').scrollIntoView()",
    ),
)


def main() -> None:
    """Take all screenshots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("--unit", type=int, default=360)
    parser.add_argument("--layer", type=int, default=3)
    arguments = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for shot in SHOTS:
            take(browser, arguments.page, shot, unit=arguments.unit, layer=arguments.layer)
        browser.close()


def take(browser: Browser, page: Path, shot: Shot, **where: int) -> None:
    """Open the page as `shot` says and save what the window shows, with 256 colours."""
    width, height = shot.size
    context = browser.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=shot.scale, color_scheme=shot.scheme
    )
    opened = context.new_page()
    opened.goto(page.resolve().as_uri() + shot.view.format(**where))
    opened.wait_for_selector("html[data-ready=yes]")
    opened.wait_for_function("[...document.images].every((image) => image.complete)")
    if shot.script:
        opened.evaluate(shot.script)
    opened.wait_for_timeout(1000)  # thumbnails that came into view are drawn
    picture = Image.open(io.BytesIO(opened.screenshot())).convert("RGB")
    few = picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(ASSETS / f"{shot.name}.png", optimize=True)
    context.close()


if __name__ == "__main__":
    main()
