"""The report in a real browser: light and dark, on a phone and on a desktop."""

import json

import pytest

from normlab.report.page import page
from normlab.report.sources import read
from tests.support.browser import NAMES, Browser, executable
from tests.support.report_sources import HOSTILE, record, write_records, write_run, write_watch

pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif(executable() is None, reason=f"no browser: none of {', '.join(NAMES)}"),
]

LOOKS = [(390, 844, False), (390, 844, True), (1280, 900, False), (1280, 900, True)]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with all sections, long names, and much that is hostile."""
    folder = tmp_path_factory.mktemp("report")
    write_watch(write_run(folder / "runs", "a", lr=1e-3))
    write_run(folder / "runs", "b" * 60, lr=1e-2, loss=2.5)
    write_run(folder / "runs", "c", lr=1e-1, state="diverged", norm=HOSTILE)
    sites = {f"blocks.{i}.mlp.norm_in": record("x").sites["norm_final"] for i in range(40)}
    write_records(
        folder, record("a"), record("a", "fp16", 900.0, overflowed=7),
        record("a", "fp8_e5m2.flush.saturate:lanes128.onepass+calibrated_mean.pow2", 25.0),
        record("b" * 60, perplexity=18.0, sites=sites), record("b" * 60, "fp16", status="n/a"),
        record("m" * 90, perplexity=19.0), record("c", status="diverged"),
    )  # fmt: skip
    file = folder / "page.html"
    file.write_text(page(read([folder, folder / "runs"]), f"A page {HOSTILE}"), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(params=LOOKS, ids=lambda p: f"{p[0]}-{'dark' if p[2] else 'light'}")
def shown(browser, address, request):
    """The browser with the page loaded afresh."""
    browser.look(*request.param)
    browser.open(address)
    return browser


def column(browser, number):
    """Texts of a column of the first table, from the top."""
    rows = "[...document.querySelector('table').tBodies[0].rows]"
    return browser.run(f"{rows}.map(row => row.cells[{number}].innerText)")


def test_nothing_goes_wrong_and_nothing_hangs_over(shown):
    assert shown.complaints == []
    wide, room = shown.run("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= room
    shown.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert shown.run("document.documentElement.scrollWidth") <= room
    assert shown.run("[...document.querySelectorAll('h2')].length") == 8


def test_wide_tables_scroll_in_a_box_of_their_own_with_a_shadow(shown):
    boxes = shown.run("""[...document.querySelectorAll('div.scroll:has(table)')].map(
        b => [b.scrollWidth > b.clientWidth, getComputedStyle(b).overflowX,
              getComputedStyle(b).backgroundAttachment])""")
    assert boxes
    assert any(wide for wide, *_ in boxes)
    shadow = "local, local, scroll, scroll"
    assert all(said == ["auto", shadow] for _, *said in boxes)


def test_texts_of_charts_are_of_one_size(shown):
    sizes = shown.run("""['#losses', '#rates', '#insides'].map(s => {
        const text = document.querySelector(`${s} .scroll > svg text`);
        return text.getScreenCTM().a * parseFloat(getComputedStyle(text).fontSize);
    })""")
    assert max(sizes) < 1.05 * min(sizes)


def test_text_stands_out_from_what_is_behind_it(shown):
    """Contrast of at least 4.5 (WCAG 2.1 AA), as the browser computes the colours."""
    colours = shown.run("""(() => {
        const back = getComputedStyle(document.body).backgroundColor;
        const of = s => getComputedStyle(document.querySelector(s));
        return [back, of('body').color, of('.note').color, of('td a').color, of('.bad').color,
                of('svg text').fill, of('svg text.edge').fill];
    })()""")
    back, *texts = [luminance(c) for c in colours]
    assert all((max(back, t) + 0.05) / (min(back, t) + 0.05) >= 4.5 for t in texts), colours


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.1)."""
    parts = [int(x) / 255 for x in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_page_is_dark_where_that_is_preferred(browser, address):
    backs = []
    for dark in (False, True):
        browser.look(1280, 900, dark)
        browser.open(address)
        backs.append(luminance(browser.run("getComputedStyle(document.body).backgroundColor")))
    assert backs[0] > 0.9
    assert backs[1] < 0.05


def test_a_click_sorts_and_a_second_one_turns_round(shown):
    assert [text[0] for text in column(shown, 0)] == ["a", "b", "m", "c"]
    head = "table thead th:nth-child(4)"  # fp32: a 20, b 18, m 19, c diverged
    for order, models in (("ascending", "bmac"), ("descending", "ambc")):
        shown.click(f"{head} button")
        assert shown.run(f"document.querySelector({json.dumps(head)}).ariaSort") == order
        assert [text[0] for text in column(shown, 0)] == list(models)


def test_keys_sort_too(shown):
    shown.run("document.querySelector('table thead button').focus()")
    shown.press("Enter")
    assert [text[0] for text in column(shown, 0)] == ["a", "b", "c", "m"]


def test_pointing_at_a_line_shows_its_value(shown):
    shown.centre("#losses .scroll > svg")
    at = shown.run("""(() => {
        const line = document.querySelector('#losses .scroll > svg polyline');
        const end = line.points[line.points.length - 1].matrixTransform(line.getScreenCTM());
        return [end.x, end.y - 2];
    })()""")
    shown.hover(*at)
    assert not shown.run("document.getElementById('tip').hidden")
    said = shown.run("document.getElementById('tip').textContent")
    assert said == "a\nstep 40: validation loss 3"
    assert shown.run("document.querySelectorAll('svg.near .nearest').length") == 1
    box = shown.run(
        "(b => [b.left, b.right])(document.getElementById('tip').getBoundingClientRect())"
    )
    assert 0 <= box[0] < box[1] <= shown.run("innerWidth")


def test_pointing_at_a_range_shows_it_and_so_does_the_focus(shown):
    shown.hover(*shown.centre("#ranges .mark circle"))
    said = shown.run("document.getElementById('tip').textContent")
    assert said.startswith("blocks.2.mlp.norm_in: Σ 0.0625 … 0.5, median 0.177")
    shown.run("document.querySelectorAll('#ranges .mark')[1].focus()")
    assert shown.run("document.getElementById('tip').textContent").startswith("blocks.10.mlp")


def test_a_number_leads_to_its_record_and_opens_it(shown):
    shown.click("td a")
    shown.until("document.querySelector('details:target')?.open")
    assert "SHA-256" in shown.run("document.querySelector(':target').innerText")
    top = shown.run("document.querySelector(':target').getBoundingClientRect().top")
    assert 0 <= top < shown.run("innerHeight")
