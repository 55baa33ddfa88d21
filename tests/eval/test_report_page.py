"""The report's page in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eval.report.__main__ import write_report
from tests.eval.chromium import EXECUTABLE, Chromium
from tests.eval.sample_results import Job, fail, finish, write_sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="needs Chromium: apt-get install chromium"),
]
NASTY = "<img src=x onerror=\"document.title='broken'\">&'\"" + "long_" * 30


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    write_sample(out, failing=[("deit", "eurosat", "knn")])
    return write_report(out)[-1]


@pytest.fixture
def window(chromium: Chromium, page: Path) -> Iterator[Chromium]:
    """The sample's page in a desktop window; whatever a test did, nothing may have been complained about or fetched."""
    chromium.complaints.clear()
    chromium.requests.clear()
    chromium.open(page, 1280)
    yield chromium
    assert not chromium.complaints
    assert {request for request in chromium.requests if not request.startswith("data:")} == {page.resolve().as_uri()}


def column(window: Chromium, number: int, section: str = "knn") -> list[str | None]:
    """The sort keys of a column of a protocol's table, from top to bottom; None for a dash."""
    rows = f"document.querySelector('section[data-protocol={section}] table').tBodies[0].rows"
    return window.run(f"[...{rows}].map((row) => row.cells[{number}].dataset.v ?? null)")


def press(window: Chromium, number: int, section: str = "knn") -> None:
    table = f"document.querySelector('section[data-protocol={section}] table')"
    window.run(f"{table}.tHead.rows[0].cells[{number}].querySelector('button').click()")


def shown(window: Chromium, selector: str) -> int:
    """How many elements take up room."""
    count = f"[...document.querySelectorAll({selector!r})].filter((each) => each.getBoundingClientRect().height).length"
    return window.run(count)


def test_columns_sort_both_ways_with_dashes_last(window: Chromium) -> None:
    tasks = column(window, 0)
    assert tasks == sorted(tasks, key=str)
    press(window, 0)
    press(window, 0)
    assert column(window, 0) == tasks[::-1]
    for sign in (-1, 1):
        press(window, 3)
        values = column(window, 3)
        assert values[-1] is None and None not in values[:-1]
        numbers = [float(value) for value in values if value is not None]
        assert numbers == sorted(numbers, key=lambda value, sign=sign: sign * value)
    header = "document.querySelectorAll('section[data-protocol=knn] th[aria-sort]')"
    assert window.run(f"[...{header}].map((th) => th.getAttribute('aria-sort'))") == ["ascending"]
    assert column(window, 0, "linear") == tasks


def test_rows_stay_together_when_sorted(window: Chromium) -> None:
    before = dict(zip(column(window, 0), column(window, 1), strict=True))
    press(window, 2)
    assert dict(zip(column(window, 0), column(window, 1), strict=True)) == before
    assert window.run("document.querySelector('section[data-protocol=knn] tfoot').innerText").startswith("Average")


def test_protocols_models_and_tasks_are_filtered(window: Chromium) -> None:
    whole = shown(window, "section[data-protocol] svg"), shown(window, "section[data-protocol=knn] > .scroll tbody tr")
    choose = "(name, value) => { const field = document.querySelector('nav form').elements[name]; field.value = value;"
    choose = f"({choose} field.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
    window.run(f"{choose}('protocol', 'knn')")
    assert shown(window, "section[data-protocol=linear]") == 0 and shown(window, "section[data-protocol=knn]") == 1
    window.run(f"{choose}('task', 'FLOW')")
    assert shown(window, "section[data-protocol=knn] > .scroll tbody tr") == 1
    assert shown(window, "section[data-protocol=knn] .bars-all figure") == 1
    assert shown(window, "section[data-protocol=knn] .scatter circle") == 2
    bars = "section[data-protocol=knn] .bars-all figure:not([hidden]) svg"
    height = window.run(f"document.querySelector('{bars}').getBoundingClientRect().height")
    window.run("document.querySelectorAll('nav input[name=model]')[1].click()")
    assert shown(window, "section[data-protocol=knn] .scatter circle") == 1
    assert shown(window, "section[data-protocol=knn] > .scroll thead th") == 3
    assert window.run(f"document.querySelector('{bars}').getBoundingClientRect().height") == height * 2 / 3
    window.run("document.querySelector('nav button[type=reset]').click()")
    window.run("new Promise((done) => setTimeout(done, 50))")
    assert (
        shown(window, "section[data-protocol] svg"),
        shown(window, "section[data-protocol=knn] > .scroll tbody tr"),
    ) == whole


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_window(window: Chromium, page: Path, width: int, dark: bool) -> None:
    """Only tables scroll sideways, each in its own box; text is large enough to read on a phone."""
    window.open(page, width, dark=dark)
    window.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert shown(window, "[aria-label^='Reliability diagram of']") == 18
    assert window.run("document.documentElement.scrollWidth <= innerWidth")
    boxes = "[...document.querySelectorAll('section, nav, figure, .chip, pre')]"
    assert window.run(f"{boxes}.every((box) => box.getBoundingClientRect().right <= innerWidth)")
    assert shown(window, ".failed td.wrap") > 0
    reasons = "[...document.querySelectorAll('.failed td.wrap')]"
    assert window.run(f"{reasons}.every((cell) => cell.getBoundingClientRect().right <= innerWidth)")
    # SVG that is scaled down shows smaller text than its style says.
    scale = "((m) => m ? Math.hypot(m.a, m.b) : 1)(text.getScreenCTM?.())"
    size = f"parseFloat(getComputedStyle(text).fontSize) * {scale}"
    texts = "[...document.querySelectorAll('td, th, p, li, figcaption, svg text')].filter((text) => text.innerHTML)"
    assert window.run(f"Math.min(...{texts}.map((text) => {size}))") > (9 if width >= 390 else 7)
    assert window.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(18, 21, 27)" if dark else "rgb(247, 248, 250)"
    )


def test_names_are_text_whatever_they_contain(chromium: Chromium, tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    for model in ("base", NASTY):
        for task in ("digits", f"{NASTY}-task"[-80:].replace("/", "_")):
            job = Job(model, task, command=f"python {NASTY}</pre></script>")
            finish(tmp_path, job, labels, labels) if task == "digits" else fail(tmp_path, Job(model, seed=2), NASTY)
    (page,) = write_report(tmp_path)[-1:]
    chromium.complaints.clear()
    chromium.open(page, 390)
    assert chromium.run("document.title") == "Transfer evaluation" and chromium.run("document.images.length") == 0
    assert chromium.run("document.documentElement.scrollWidth <= innerWidth")
    assert chromium.run("document.querySelector('.chip:last-child span').textContent") == NASTY
    assert not chromium.complaints
