"""What tests of pages share: a window of any size and theme, keys, scripts, pictures."""

import base64
import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def start(folder, *flags, logs, preferences=None):
    """Chromium with its data in a folder; without it the test is skipped, or fails.

    Args:
      folder: empty.
      flags: beside `FLAGS`.
      logs: that are kept.
      preferences: of the user.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        missing = "no chromium and chromedriver on the path"
        # Where they were installed for these tests, a skip would hide that they are gone.
        (pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip)(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, *flags, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    if preferences:
        options.add_experimental_option("prefs", preferences)
    options.set_capability("goog:loggingPrefs", dict.fromkeys(logs, "ALL"))
    return webdriver.Chrome(options=options, service=Service(driver))


def show(browser, *, width=1280, height=900, scheme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def screenshot(browser):
    """The window, [H, W, 3] uint8."""
    data = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def run(browser, script, *arguments):
    return browser.execute_script(f"return {script}", *arguments)


def key(browser, *keys):
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def contrast(*colours):
    """Of WCAG 2: at least 4.5 is readable."""
    luminances = []
    for colour in colours:
        channels = np.array([int(c) for c in colour.strip("rgb()").split(",")]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        luminances.append(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)
