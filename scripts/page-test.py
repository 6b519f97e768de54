#!/usr/bin/env python3
"""Clicks through the server's page in headless Chromium and attacks it.

With --fake the page's files come from this script, as the server serves them, and answers are scripted:
streams, errors, attacks. Without it the program is started on the demo, and what needs no scripted answer is
checked with it.

    apt-get install chromium chromium-driver
    scripts/page-test.py --fake
    scripts/page-test.py target/debug/wayinfer
"""
from __future__ import annotations

import argparse, os, signal, sys, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "page"))

import chat, looks, markdown, page, real, safety  # noqa: E402
from driver import Browser, DriverError  # noqa: E402
from fake import Fake  # noqa: E402

LIMIT = 180  # seconds, for all: a hang must not hold up whoever waits


class Report:
    """Runs checks and says how they went."""

    def __init__(self, only: str):
        self.only, self.count, self.failed = only, 0, 0

    def run(self, name: str, what: str, check):
        if self.only and self.only not in name:
            return
        start = time.monotonic()
        self.count += 1
        try:
            note = check()
        except (AssertionError, DriverError) as error:
            self.failed += 1
            print(f"FAIL  {name}: {error}", flush=True)
        else:
            print(f"ok    {name} ({time.monotonic() - start:.1f} s): {note or what}", flush=True)


def first_line(check) -> str:
    return (check.__doc__ or "").splitlines()[0]


def scripted(report: Report, browser: Browser):
    for check in [*safety.CHECKS, markdown.markdown]:
        report.run(check.__name__, first_line(check), lambda check=check: check(browser))

    def on_page(check, **options):
        with Fake(answers=chat.ANSWERS, **options) as server:
            check(page.Page(browser, server))
            page.equal(browser.complaints(), [], "what the console says")

    for check in [*chat.CHECKS, *looks.CHECKS]:
        report.run(check.__name__, first_line(check), lambda check=check: on_page(check))
    report.run("api_key", first_line(chat.api_key), lambda: on_page(chat.api_key, key="secret-key"))
    for what, patches, check in safety.CANARIES:
        report.run("canary", f"noticed: {what}", lambda patches=patches, check=check: check(browser, patches))


def unscripted(report: Report, browser: Browser, program: str):
    browser.patience = real.PATIENCE

    def run(check, server):
        check(browser, server)
        page.equal(browser.complaints(), [], "what the console says")

    groups = (
        (real.CHECKS, "demo", []),
        (real.ENDLESS, real.NOISE, real.SLOWLY),
        (real.STREAMED, real.NOISE, [*real.SLOWLY, "--ram", real.least_ram(program)]),
        (real.KEYED, "demo", ["--api-key", real.KEY]),
    )
    for checks, model, arguments in groups:
        with real.Program(program, *arguments, model=model) as server:
            for check in checks:
                report.run(check.__name__, first_line(check), lambda check=check: run(check, server))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", default="target/debug/wayinfer", help="wayinfer's binary")
    parser.add_argument("--fake", action="store_true", help="scripted answers instead of the program")
    parser.add_argument("--only", default="", help="checks whose name holds this")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"not done in {LIMIT} s")))
    signal.alarm(LIMIT)
    # What ends this script ends the browser too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    start = time.monotonic()
    report = Report(options.only)
    browser = Browser()
    try:
        if options.fake:
            scripted(report, browser)
        else:
            unscripted(report, browser, options.program)
    finally:
        browser.close()
    print(f"{report.count} checks, {report.failed} failed, {time.monotonic() - start:.0f} s")
    return 1 if report.failed or not report.count else 0


if __name__ == "__main__":
    sys.exit(main())
