"""The report in a real browser: light and dark, on a phone and on a desktop, without a network."""

import shutil

import pytest

from normlab.report.page import page
from normlab.report.sources import read
from tests.support.report_sources import (
    HOSTILE,
    record,
    run_record,
    write_records,
    write_run,
    write_watch,
)

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)}"),
]

SIZES = [(390, 844), (1280, 900)]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with all sections, thirty methods, long names, and much that is hostile."""
    folder = tmp_path_factory.mktemp("report")
    for i in range(30):
        for lr in (1e-3, 1e-2):
            run = write_run(folder / "runs", f"{'m' * 60}{i}-{lr}", f"norm{i}" * 5, lr, loss=3.0)
            write_records(folder, run_record(run, perplexity=20.0 + i))
            write_records(folder, run_record(run, "fp16+calibrated_mean.pow2", 900.0 + i))
    write_watch(run)
    write_run(folder / "runs", "bad", lr=1e-1, state="diverged", norm=HOSTILE)
    sites = {f"blocks.{i}.mlp.norm_in": record("x").ranges.sites["norm_final"] for i in range(40)}
    write_records(folder, record("m" * 90, perplexity=19.0, sites=sites, overflowed=9))
    file = folder / "page.html"
    file.write_text(page(read([folder, folder / "runs"]), f"A page {HOSTILE}"), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as found:
        made = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(
    scope="module", params=[(*s, look) for s in SIZES for look in ("light", "dark")], ids=str
)
def shown(browser, address, request):
    """The page with all its charts drawn; it fails where the console or the network has a word."""
    width, height, look = request.param
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=look, offline=True
    )
    tab, said = context.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda asked: said.append(asked.url) if asked.url != address else None)
    tab.goto(address)
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for chart in tab.query_selector_all("#losses .chart, #rates .chart, #insides .chart"):
        chart.scroll_into_view_if_needed()
        chart.wait_for_selector("svg.marks")
    yield tab
    context.close()
    assert said == []


def test_nothing_hangs_over_and_legends_take_less_than_a_screen(shown):
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    legends = shown.evaluate(
        "[...document.querySelectorAll('.role-legend')].map(l => l.getBoundingClientRect().height)"
    )
    assert legends
    assert max(legends) < 0.75 * shown.viewport_size["height"]


def test_no_part_of_a_chart_is_cut_off(shown):
    """Legends, axes and labels lie inside their chart, each chart inside the window."""
    over = shown.evaluate("""[...document.querySelectorAll('.chart svg.marks')].flatMap(svg => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('.role-legend, .role-axis, .role-mark')].map(
            e => e.getBoundingClientRect()).filter(b => b.left < box.left - 1 || b.top < box.top - 1
            || b.right > box.right + 1 || b.bottom > box.bottom + 1 || box.right > innerWidth);
    }).length""")
    assert over == 0


def test_the_answer_and_its_first_number_are_on_the_first_screen(shown):
    shown.evaluate("scrollTo(0, 0)")
    for selector in (".answer", "header table td:nth-child(2)"):
        box = shown.query_selector(selector).bounding_box()
        assert box["y"] + box["height"] < shown.viewport_size["height"]
        assert box["x"] + box["width"] <= shown.viewport_size["width"]


def test_text_stands_out_from_what_is_behind_it(shown):
    """Contrast of at least 4.5 (WCAG 2.1 AA), as the browser computes the colours."""
    back, *texts = map(luminance, shown.evaluate("""(() => {
        const of = s => getComputedStyle(document.querySelector(s));
        return [of('body').backgroundColor, of('body').color, of('.note').color, of('a').color,
                of('.chart .role-axis text').fill, of('.chart .role-legend text').fill];
    })()"""))  # fmt: skip
    assert all((max(back, t) + 0.05) / (min(back, t) + 0.05) >= 4.5 for t in texts)


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.1)."""
    parts = [int(x) / 255 for x in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_pointing_at_a_curve_shows_its_run_and_its_value(shown):
    point = shown.query_selector("#losses .mark-symbol path")
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    shown.wait_for_selector("#vg-tooltip-element.visible")
    said = shown.inner_text("#vg-tooltip-element")
    assert "lr 0.001 (mmm" in said
    assert "validation loss" in said


def test_a_click_in_the_legend_shows_one_method_alone(shown):
    pale = "document.querySelectorAll('#losses figure path[opacity=\"0.08\"]').length"
    assert shown.evaluate(pale) == 0
    shown.query_selector("#losses .role-legend-label text").click(force=True)
    shown.wait_for_function(f"{pale} > 20")


def test_a_number_leads_to_its_record_and_opens_it(shown):
    shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    shown.evaluate("document.querySelector('#models a').click()")
    shown.wait_for_function("document.querySelector(':target').checkVisibility()")
    assert "python -m evaluate" in shown.inner_text(":target")
