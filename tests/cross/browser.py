"""Writes a text with the page in headless Chromium, as a user would, and compares it.

Drives Debian's chromedriver over the WebDriver protocol with the standard library alone.
"""

import argparse
import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

CHROMIUM_ARGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
]
PATIENCE_S = 120


def serve(folder):
    """A static server on a free port; returns its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


class Browser:
    """One session of chromedriver."""

    def __init__(self, size):
        self.profile = tempfile.mkdtemp(prefix="bitnet-browser-")
        self.driver = subprocess.Popen(
            [os.environ.get("CHROMEDRIVER", "chromedriver"), "--port=0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.base = None
        for line in self.driver.stdout:
            if "started successfully on port" in line:
                self.base = f"http://127.0.0.1:{line.rstrip().rstrip('.').split()[-1]}"
                break
        if self.base is None:
            sys.exit("chromedriver does not start")
        arguments = CHROMIUM_ARGS + [f"--user-data-dir={self.profile}", f"--window-size={size}"]
        options = {"binary": shutil.which("chromium"), "args": arguments}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options}
        made = self.request("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.base += f"/session/{made['sessionId']}"

    def request(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)["value"]

    def run(self, script, *arguments):
        return self.request("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, what, script):
        """Until the script returns something true; the page's own words if that does not happen."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.1)
        sys.exit(f"browser: no {what} after {PATIENCE_S} s; the page says:\n{self.run('return document.body.innerText')}")

    def close(self):
        try:
            self.request("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()
            shutil.rmtree(self.profile, ignore_errors=True)


def fill(browser, fields):
    for name, value in fields.items():
        browser.run("document.getElementById(arguments[0]).value = arguments[1]", name, str(value))


def wait_for_model(browser):
    """What the page says of the model once it is loaded."""
    ready = "return !document.getElementById('generate').disabled && document.getElementById('model').textContent"
    said = browser.wait("model", ready)
    print("page:", said)
    return said


def choose_file(browser, path):
    """Opens a file as the picker does."""
    browser.run("document.getElementById('model').textContent = ''")
    found = browser.request("POST", "/element", {"using": "css selector", "value": "#file"})
    (element,) = found.values()
    browser.request("POST", f"/element/{element}/value", {"text": os.path.abspath(path)})


def write(browser, options):
    """The text that the page writes."""
    fields = {"prompt": options.prompt, "max-tokens": options.tokens, "seed": options.seed}
    fill(browser, fields | {"temperature": options.temperature, "top-k": options.top_k})
    browser.run("document.getElementById('state').textContent = ''")
    browser.run("document.getElementById('generate').click()")
    ended = "return document.getElementById('stop').disabled && document.getElementById('state').textContent"
    print("page:", browser.wait("end", ended))
    return browser.run("return document.getElementById('written').textContent")


def compare(written, options):
    # A shell takes the newlines off the end of what a program writes.
    if written.rstrip("\n") != options.expect.rstrip("\n"):
        sys.exit(f"browser: another text.\nexpected: {options.expect!r}\nwritten:  {written!r}")
    print(f"browser: the text of this machine, {len(written)} characters")


def check_url(browser, options):
    """The model that the page fetches by itself."""
    browser.request("POST", "/url", {"url": f"{serve(options.page)}?{options.query}"})
    said = wait_for_model(browser)
    if f"kernels {options.kernels}." not in said:
        sys.exit(f"browser: other kernels than {options.kernels}")
    compare(write(browser, options), options)
    if options.screenshot:
        picture = base64.b64decode(browser.request("GET", "/screenshot"))
        with open(options.screenshot, "wb") as file:
            file.write(picture)


def check_file(browser, options):
    """The same model as a file, and a file that is none."""
    choose_file(browser, options.file)
    wait_for_model(browser)
    compare(write(browser, options), options)
    choose_file(browser, __file__)
    failed = browser.wait("message", "return document.querySelector('#model.failed')?.textContent")
    print("page:", failed)
    if "not a .btn file" not in failed or not browser.run("return document.getElementById('generate').disabled"):
        sys.exit("browser: a file that is no model is accepted")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", required=True, help="folder of the page")
    parser.add_argument("--query", default="", help="of the page's address")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--temperature", type=float, required=True)
    parser.add_argument("--top-k", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--kernels", required=True, help="that the page must use")
    parser.add_argument("--file", required=True, help="the model that the page has, to open as a file")
    parser.add_argument("--expect", required=True, help="the text that must come")
    parser.add_argument("--size", default="900,1120", help="of the window")
    parser.add_argument("--screenshot", help="where to put a picture of the page")
    options = parser.parse_args()

    browser = Browser(options.size)
    try:
        check_url(browser, options)
        check_file(browser, options)
    finally:
        browser.close()


if __name__ == "__main__":
    main()
