"""The page in a real browser: silent console, no request, keyboard, phone, hostile text, size.

Needs Debian's chromium (apt-get install chromium) and playwright; skipped where one is absent.
"""

from __future__ import annotations

import json
import shutil
import time

import pytest

from compact_distill.report import write_report
from report.hostile import PAYLOADS, poison
from report.synthetic import make_run

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright (pip install playwright)"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a page; at the end of the test nothing may have been logged, requested or asked."""
    contexts, noise = [], []

    def open_page(path, viewport=DESKTOP, ready=True, **options):
        context = chromium.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        address = path.resolve().as_uri()
        page.on("console", lambda message: noise.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: noise.append(request.url) if request.url != address else None)
        page.on("requestfailed", lambda request: noise.append(request.url))
        page.goto(address)
        if ready:
            page.wait_for_selector("#ex-problem[data-ready] .ex-card", timeout=10_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert noise == []


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report([make_run(tmp_path_factory.mktemp("runs") / "run", problems=60, checkpoints=True)])


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE, {"width": 320, "height": 640}], ids=["desktop", "phone", "small"])
def test_the_page_is_silent_and_never_wider_than_the_screen(visit, report, viewport, scheme):
    page = visit(report, viewport, color_scheme=scheme)
    assert fits(page)
    assert page.locator("figure").count() == 19
    assert page.locator("h1").inner_text().startswith("The student got better at gsm8k")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(251, 251, 249)", "dark": "rgb(18, 20, 24)"}[scheme]


def test_drawings_stay_readable_on_a_phone(visit, report):
    page = visit(report, PHONE)
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.panel text')].filter(t => t.textContent.trim())"
        ".map(t => parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b)))"
    )
    assert smallest > 9


def test_the_theme_button_switches_and_remembers(visit, report):
    page = visit(report, color_scheme="light")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 24)"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_explorer_works_by_keyboard_alone(visit, report):
    page = visit(report)
    chosen = playwright.expect(page.locator(".ex-head bdi"))
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "ex-search"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "ex-list"
    chosen.to_have_text("made/0")
    for key, expected in (
        ("ArrowDown", "made/1"),
        ("j", "made/2"),
        ("ArrowUp", "made/1"),
        ("End", "made/59"),
        ("ArrowDown", "made/59"),
        ("Home", "made/0"),
    ):
        page.keyboard.press(key)
        chosen.to_have_text(expected)
        row = page.locator("#" + page.get_attribute("#ex-list", "aria-activedescendant"))
        assert row.get_attribute("aria-selected") == "true"
        assert expected in row.inner_text()
    page.keyboard.press("b")
    page.wait_for_selector("button[aria-label='Gains of the student before training'][aria-pressed=true]")
    page.keyboard.press("g")
    assert page.locator("#ex-problem.plainly").count() == 1
    page.keyboard.press("/")
    page.keyboard.type("made/17 apples")
    chosen.to_have_text("made/17")
    playwright.expect(page.locator("#ex-count")).to_have_text("1 of 60 problems")
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#ex-count")).to_have_text("60 of 60 problems")
    chosen.to_have_text("made/17")  # the search goes, the problem stays


def test_a_problem_shows_each_rationale_with_its_numbers(visit, report):
    page = visit(report)
    cards = page.locator(".ex-card")
    assert cards.count() == 4
    card = cards.first
    assert card.locator("bdi").inner_text() == "qwq"
    assert card.locator(".badge").inner_text() in {"✓ right", "✗ wrong", "over length", "unparsed", "missing"}
    assert page.locator(".spark").count() >= 3
    assert page.locator(".ex-text .g4, .ex-text .g3").count() > 0
    assert page.locator(".ex-text u").count() > 0
    assert page.locator(".spark circle").count() == 5 * page.locator(".spark").count()


def test_colours_stand_at_the_words_where_the_belief_moved(visit, report):
    page = visit(report)
    line = json.loads((report.parent / "gains.jsonl").read_text().splitlines()[60])  # after training, first problem
    data = json.loads((report.parent / "data.jsonl").read_text().splitlines()[0])
    k = next(k for k, r in enumerate(line["rationales"]) if r)
    rationale, text = line["rationales"][k], data["rationales"][k]["text"]
    s = max(range(len(rationale["gains"])), key=lambda i: rationale["gains"][i])
    words = text[(rationale["ends"][s - 1] if s else 0) : rationale["ends"][s]]
    card = page.locator(".ex-card", has_text=rationale["teacher"]).first
    tip = f"+{round(rationale['gains'][s], 2):.2f} nats"
    pieces = card.locator(f".ex-text [data-tip='{tip}']").all_text_contents()
    assert "".join(pieces) == words
    assert card.locator(".ex-text").evaluate("e => e.textContent") == text


def test_colours_keep_their_place_behind_signs_of_two_units(visit, tmp_path):
    text = "🙂🙂 So we get 7.\r\nThe answer is 7."
    rationale = {"teacher": "t", "text": text, "verdict": "correct", "status": "ok", "tokens": 5}
    problem = {"id": "p", "question": "?", "answer": "7", "rationales": [rationale]}
    steps = {"start": 0, "belief": -1.0, "ends": [2, 5, 16], "gains": [0.0, 0.9, -0.9], "thinking": [[3, 5]]}
    line = {"id": "p", "student": "after", "rationales": [{"teacher": "t", **steps}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(problem) + "\n")
    (tmp_path / "gains.jsonl").write_text(json.dumps(line) + "\n")
    page = visit(write_report([tmp_path]))
    assert "".join(page.locator(".ex-text .g4").all_text_contents()) == " So"
    assert "".join(page.locator(".ex-text .h4").all_text_contents()) == " we get 7. "
    assert page.locator(".ex-text u").all_text_contents() == ["So"]
    assert page.locator(".ex-text").evaluate("e => e.textContent") == text.replace("\r\n", " \n")


def test_filters_and_orders_choose_problems(visit, report):
    page = visit(report)
    page.select_option("#ex-show", "mixed")
    shown = int(page.locator("#ex-count").inner_text().split(" ")[0])
    assert 0 < shown < 60
    page.select_option("#ex-sort", "uneven")
    page.focus("#ex-list")
    page.keyboard.press("Home")
    rows = [json.loads(line) for line in (report.parent / "scores.jsonl").read_text().splitlines()]
    mixed = {
        row["id"]
        for row in map(json.loads, (report.parent / "data.jsonl").read_text().splitlines())
        if {"correct", "wrong"} <= {r["verdict"] for r in row["rationales"]}
    }
    assert shown == len(mixed)
    last = {row["id"]: max(row["weights"]) for row in rows if row["id"] in mixed}
    playwright.expect(page.locator(".ex-head bdi")).to_have_text(max(last, key=last.get))
    page.fill("#ex-search", "no such problem")
    page.wait_for_selector("#ex-problem .nothing")


def test_tables_sort_numbers_as_numbers_both_ways(visit, report):
    page = visit(report)
    page.locator("#fig-weights details summary").click()
    table = page.locator("#fig-weights table")

    def values():
        cells = table.locator("tbody tr td:nth-child(3)")
        return [float(value) for value in cells.evaluate_all("cells => cells.map(c => c.dataset.value)")]

    head = table.locator("th").nth(2)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)


def test_marks_tell_their_values_under_the_pointer(visit, report):
    page = visit(report)
    mark = page.locator("#fig-weights .dot[data-tip]").first
    mark.scroll_into_view_if_needed()
    mark.hover()
    assert page.locator("#tip").inner_text() == mark.get_attribute("data-tip")
    assert "qwq: 0." in page.locator("#tip").inner_text()


def test_the_page_reads_without_scripts(visit, report):
    page = visit(report, ready=False, java_script_enabled=False)
    assert page.locator("figure svg.panel").count() > 20
    assert "needs JavaScript" in page.locator("noscript").inner_text()


def test_hostile_text_does_nothing_anywhere(visit, tmp_path):
    run = poison(make_run(tmp_path / "run", problems=len(PAYLOADS) * 2))
    path = write_report([run])
    page = visit(path)
    while page.locator("details:not([open]) > summary").count():
        page.locator("details:not([open]) > summary").first.click()
    page.focus("#ex-list")
    for _ in range(len(PAYLOADS) * 2):
        page.keyboard.press("ArrowDown")
    playwright.expect(page.locator(".ex-head bdi")).to_contain_text("made/25")
    for mark in page.locator("[data-tip]").all()[:40]:
        mark.dispatch_event("pointermove")
    page.wait_for_timeout(200)
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.querySelectorAll('iframe, img, object, base, form').length") == 0
    assert page.evaluate("document.scripts.length") == 3
    assert "<script>window.pwned=1</script>" in page.locator(".ex-question").inner_text()  # shown, as text
    compared = visit(write_report([run, run], tmp_path / "compare.html"), ready=False)
    assert compared.evaluate("window.pwned") is None


@pytest.mark.parametrize("teachers", [1, 8])
def test_one_and_eight_teachers_fit_desktop_and_phone(visit, tmp_path, teachers):
    names = [f"a-teacher-with-a-rather-long-name-{k}" for k in range(teachers)]
    path = write_report([make_run(tmp_path / "run", problems=8, teachers=names)])
    for viewport in (DESKTOP, PHONE):
        page = visit(path, viewport)
        assert fits(page)
        assert page.locator(".ex-card").count() == teachers


def test_rationales_of_8000_tokens_open_and_scroll_in_their_box(visit, tmp_path):
    path = write_report([make_run(tmp_path / "run", problems=3, tokens=8000)])
    page = visit(path)
    start = time.monotonic()
    page.focus("#ex-list")
    page.keyboard.press("ArrowDown")
    playwright.expect(page.locator(".ex-head bdi")).to_have_text("made/1")
    assert time.monotonic() - start < 2
    box = page.locator(".ex-text").first
    assert box.evaluate("e => e.scrollHeight > 4 * e.clientHeight")
    page.locator(".ex-more").first.click()
    assert box.evaluate("e => e.scrollHeight <= e.clientHeight + 1")
    assert fits(page)


def test_half_written_runs_show_what_there_is(visit, report, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("data.jsonl", "scores.jsonl"):
        lines = (report.parent / name).read_text().splitlines(keepends=True)
        (run / name).write_text("".join(lines[:20]) + lines[20][:30])
    page = visit(write_report([run]))
    assert page.locator(".missing li").count() >= 5
    assert page.locator("#fig-weights").count() == 1


def test_two_thousand_problems_open_in_under_2_s(visit, tmp_path):
    path = write_report([make_run(tmp_path / "run", problems=2000, tokens=134, students=("after",))])
    times: list[float] = []
    while len(times) < 6 and min(times, default=9) >= 2:  # a busy machine gets another chance
        start = time.monotonic()
        visit(path)
        times.append(time.monotonic() - start)
    assert min(times) < 2, times


BROKEN_WORDS = """[...document.querySelectorAll('td bdi')].flatMap(cell => {
    const text = cell.firstChild, broken = []
    for (const word of (text?.data ?? '').matchAll(/[^ ]{1,40}(?= |$)/g)) {
        const range = document.createRange()
        range.setStart(text, word.index)
        range.setEnd(text, word.index + word[0].length)
        if (new Set([...range.getClientRects()].map(r => r.top)).size > 1) broken.push(word[0])
    }
    return broken
})"""


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_name_in_the_table_of_settings_is_broken_over_lines(visit, tmp_path, viewport):
    best = {"weighting": {"best": "rank_surprisal"}, "train": {"lr_scheduler_type": "cosine_with_min_lr"}}
    named = {
        "compact": {},
        "equal_weights_with_consistency": {"weighting": "equal"},
        "surprisal": best,
        "d": {},
        "e": {},
    }
    runs = [
        make_run(tmp_path / name, problems=4, config={"compatibility": {"temperature": n, "local_steps": n}, **given})
        for n, (name, given) in enumerate(named.items())
    ]
    page = visit(write_report(runs, tmp_path / "compare.html"), viewport, ready=False)
    shown = page.locator("#settings td bdi").all_inner_texts()
    assert {"train.lr_scheduler_type", "compatibility.temperature", "cosine_with_min_lr", "rank_surprisal"} <= set(
        shown
    )
    assert "output" not in shown
    assert page.evaluate(BROKEN_WORDS) == []
    assert fits(page)
