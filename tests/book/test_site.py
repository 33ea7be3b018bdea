"""The built book in a real browser, as a reader meets it: from disk, without a network, on a desk
and on a phone, in light and in dark.

`make site-test` runs it on a site that was built before ($DATADREAM_SITE); without one, four of the
book's pages are built for it. Pictures of every page are left in _build/screenshots.
"""

import html
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from browse import DESK, PHONE, broken, malformed, search, visit
from conftest import ROOT

from datadream.methods.registry import METHODS
from datadream.publish import method_page
from datadream.results import style

pytestmark = pytest.mark.site

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SMALL = {
    "format": "jb-book",
    "root": "book/leaderboard",
    "chapters": [
        {
            "file": "book/published",
            "sections": [{"file": "book/paper_scale"}, {"file": "book/references"}],
        }
    ],
}

# What a figure's smallest text has in points, by its width in pixels as drawn: today's style, and
# that of pages that were executed before it.
POINTS, EARLIER = {round(style.WIDTH * style.DPI): style.SMALL}, 8.0
SMALLEST = 9  # pixels on the screen
# Of a figure's colours, those that stand out. The others are edges of thin lines, half line and
# half ground, of which a small picture has many.
LEGIBLE = 1 / 3
WIDE = 12  # columns; a table with more may scroll on a desk too


def smallest(picture):
    """Return the height in pixels of a picture's smallest text as it is shown."""
    points = POINTS.get(round(picture["own"]), EARLIER)
    return points * style.DPI / 72 * picture["width"] / picture["own"]


def misfits(one):
    """Return the pictures and tables that are wider than what shows them, and are cut by it."""
    cut = [
        shown
        for shown in one.layout["pictures"] + one.layout["tables"]
        if shown["width"] > shown["room"] + 1 and not shown["scrolls"]
    ]
    tables = [
        table
        for table in one.layout["tables"]
        if one.width == DESK and table["width"] > table["room"] + 1 and table["columns"] <= WIDE
    ]
    return cut + tables


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not program:
        pytest.skip(
            "THE SITE IS NOT TESTED: there is no Chromium. Install it (apt-get install chromium) "
            "or let CHROMIUM name its program"
        )
    with sync_playwright() as tools:
        running = tools.chromium.launch(executable_path=program)
        yield running
        running.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the root of the site to test."""
    if os.environ.get("DATADREAM_SITE"):
        built = Path(os.environ["DATADREAM_SITE"]).resolve()
        assert (built / "index.html").is_file(), f"there is no site in {built}"
        return built
    home = tmp_path_factory.mktemp("site")
    # Links to pages that these few are without are warned of, which is nothing to fail for.
    (home / "toc.yml").write_text(yaml.safe_dump(SMALL))
    build = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        ROOT,
        "--toc",
        home / "toc.yml",
        "--path-output",
        home,
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return home / "_build" / "html"


@pytest.fixture(scope="module")
def visits(browser, site):
    """Return the Visit of every page in every view, and leave pictures of them."""
    pictures = ROOT / "_build" / "screenshots"
    pictures.mkdir(parents=True, exist_ok=True)
    # Pages of sources are alike: one stands for all.
    of_sources = site.glob("_modules/datadream/results/distances.html")
    files = [
        *site.glob("book/**/*.html"),
        *of_sources,
        *(site / name for name in ("search.html", "genindex.html")),
    ]
    pages = sorted(file.relative_to(site).as_posix() for file in files)
    return [one for page in pages for one in visit(browser, site, page, pictures)]


@pytest.fixture(scope="module")
def shown(visits):
    """Return shown(of): what `of` finds in each visit, where it finds something."""
    return lambda of: {str(one): found for one in visits if (found := of(one))}


def test_every_link_leads_somewhere(site):
    assert not broken(site)


def test_every_link_out_of_the_site_is_an_address(site):
    assert not malformed(site)


def test_a_folder_in_angle_brackets_is_text_of_its_table(site):
    assert "unpacked into train/&lt;wnid&gt;/" in (site / "book" / "paper_scale.html").read_text()


def test_no_page_writes_an_error_to_the_console(shown):
    assert not shown(lambda one: one.errors)


def test_no_page_asks_a_network_for_anything(shown):
    assert not shown(lambda one: one.requests)


def test_no_page_is_wider_than_the_screen(shown):
    assert not shown(lambda one: one.layout["beyond"])


def test_every_picture_is_loaded_keeps_its_shape_and_says_what_it_shows(visits, shown):
    assert any(one.layout["pictures"] for one in visits)
    assert not shown(
        lambda one: [
            p
            for p in one.layout["pictures"]
            if not p["alt"]
            or not p["pixels"]
            or not p["width"]
            or abs(p["width"] / p["height"] / (p["pixels"] / p["tall"]) - 1) > 0.02
        ]
    )


def test_no_picture_and_no_table_is_cut(visits, shown):
    assert any(one.layout["tables"] for one in visits)
    assert not shown(misfits)


def test_the_text_of_every_figure_can_be_read_on_a_phone(shown):
    assert not shown(
        lambda one: [
            *(p for p in one.layout["pictures"] if p["drawn"] and smallest(p) < SMALLEST),
            *(d for d in one.layout["diagrams"] if d["smallest"] < SMALLEST),
        ]
    )


def test_every_figure_stands_out_from_its_ground_in_the_light_and_in_the_dark(visits, shown):
    assert {one.scheme for one in visits if one.figures} == {"light", "dark"}
    assert not shown(lambda one: [figure for figure in one.figures if figure["legible"] < LEGIBLE])


def test_every_diagram_says_what_it_shows(shown):
    assert not shown(lambda one: [d for d in one.layout["diagrams"] if not d["alt"]])


def test_every_computed_figure_is_sharp_on_a_dense_screen(shown):
    assert not shown(
        lambda one: [
            p for p in one.layout["pictures"] if p["drawn"] and p["pixels"] < 1.9 * p["width"]
        ]
    )


def test_the_dark_theme_darkens_plots_and_no_photo(visits, shown):
    assert any(
        p["drawn"] and p["filter"].startswith("invert")
        for one in visits
        if one.scheme == "dark"
        for p in one.layout["pictures"]
    )
    assert not shown(
        lambda one: [
            p
            for p in one.layout["pictures"]
            if p["drawn"]
            and p["filter"].startswith("invert") != (one.scheme == "dark" and not p["photo"])
        ]
    )


def test_all_code_has_a_button_that_copies_it(shown):
    assert not shown(lambda one: one.layout["uncopied"])


def test_no_page_shuts_out_readers_with_a_screen_reader_or_weak_eyes(shown):
    assert not shown(lambda one: one.violations)


def test_the_search_finds_each_method_that_a_page_names_and_its_own_page_first(browser, site):
    text = html.unescape("".join(file.read_text() for file in site.glob("book/**/*.html")))
    named = [method.title for method in METHODS.values() if method.title in text]
    assert len(named) > 5
    tab = browser.new_page()
    found = {title: search(tab, site, title) for title in named}
    tab.close()
    assert not [title for title, pages in found.items() if not pages]
    own = {title: f"{page}.html" for title, page in method_page.pages_by_title().items()}
    built = [title for title in named if title in own and (site / own[title]).is_file()]
    assert not [title for title in built if own[title] not in found[title][:5]]
    assert not [page for pages in found.values() for page in pages if not (site / page).is_file()]


def test_the_search_finds_nothing_where_there_is_nothing(browser, site):
    tab = browser.new_page()
    assert not search(tab, site, "xylophone quartet")
    tab.close()


def test_a_table_sorts_by_keyboard(browser, site, visits):
    page = next(
        one.page for one in visits if one.layout["sorts"] and one.page.endswith("leaderboard.html")
    )
    tab = browser.new_page()
    tab.goto((site / page).as_uri())
    table = tab.locator(".cell_output table:has(th.sortable)").first
    head, column = table.locator("th.sortable").filter(has_text="Top-1"), 2

    def press():
        """Press Enter on the header; return its aria-sort and the column's numbers."""
        head.locator("button").focus()
        tab.keyboard.press("Enter")
        return head.get_attribute("aria-sort"), [
            float(text)
            for text in table.locator(f"tbody tr td:nth-child({column})").all_inner_texts()
        ]

    written = [
        float(text) for text in table.locator(f"tbody tr td:nth-child({column})").all_inner_texts()
    ]
    orders = [press() for _ in range(3)]
    tab.close()
    assert orders == [
        ("ascending", sorted(written)),
        ("descending", sorted(written, reverse=True)),
        ("none", written),
    ]
    assert written != sorted(written)


INK = """<svg xmlns="http://www.w3.org/2000/svg" width="500" height="100" stroke="#1a1a1a">
<path stroke-width="9" d="M9,9 H490 M9,30 H490 M9,60 L490,90"/></svg>"""
CELLS = "<td>twelve</td>" * (WIDE + 1)
FAULTY = f"""<!doctype html><html lang="en"><head><title>Faults</title><style>
img {{ max-width: 100%; }} table {{ width: 900px; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #eee; }} }}
</style></head><body><main><h1>Faults</h1><article>
<p style="color: #bbb; background: #fff">Too pale to be read.</p>
<img src="dot.svg" width="10" height="10"> <p style="width: 3000px">Too wide.</p>
<div style="overflow-x: auto; width: 100px"><p style="width: 3000px">It scrolls.</p></div>
<div class="cell_output" style="max-width: 320px"><img alt="ink" src="ink.svg" width="500"></div>
<p style="width: 99px"><img alt="cut" src="ink.svg" style="width: 300px; max-width: none"></p>
<img alt="flat" src="ink.svg" width="200" height="90">
<svg width="100" height="20"><text y="9" font-size="8">small</text></svg>
<div style="overflow-x: hidden; width: 300px"><table><tr><td>cut</td></tr></table></div>
<div style="overflow-x: auto; width: 300px"><table><tr><td>short</td></tr></table></div>
<div style="overflow-x: auto; width: 300px"><table><tr>{CELLS}</tr></table></div>
<div class="highlight"><pre>uncopied</pre></div>
<a href="nowhere.html">a</a> <a href="#nothing">b</a> <a href="faults.html#here" id="here">c</a>
<a href="{__file__}">d</a> <a href="http://localhost:8000/">e</a> <a href="https://a b.org">f</a>
<a href="file:///some/where/index.html">g</a> <a href="htps://example.org">h</a>
<a href="https:///index.html">i</a> <a href="https://example.org/a?b=c#d">j</a>
<script src="https://example.org/script.js"></script>
<script>console.error("a fault"); missing();</script></article></main></body></html>"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Return the root of a site whose only page has every fault."""
    root = tmp_path_factory.mktemp("faulty")
    (root / "faults.html").write_text(FAULTY)
    (root / "ink.svg").write_text(INK)
    (root / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')
    return root


@pytest.fixture(scope="module")
def faults(browser, faulty):
    """Return (width, scheme) -> the Visit of the faulty page."""
    return {(one.width, one.scheme): one for one in visit(browser, faulty, "faults.html")}


def test_faults_of_scripts_and_of_code_are_found(faults):
    found = faults[DESK, "light"]
    for text in ("a fault", "missing is not defined"):
        assert any(text in error for error in found.errors)
    assert found.requests == ["https://example.org/script.js"] and found.layout["uncopied"] == 1


def test_what_is_wider_than_its_box_is_found(faults):
    desk, phone = faults[DESK, "light"], faults[PHONE, "dark"]
    beyond = " ".join(desk.layout["beyond"])
    assert "Too wide" in beyond and "It scrolls" not in beyond
    cut = ["cut", "cut"]  # a picture and a table
    named = [
        [one.get("alt") or one["text"] for one in misfits(visited)] for visited in (desk, phone)
    ]
    assert named == [[*cut, "cut", "short"], cut]


def test_what_of_a_figure_cannot_be_read_is_found(faults):
    light, dark = (faults[DESK, scheme].layout["pictures"] for scheme in ("light", "dark"))
    ink = [next(p for p in pictures if p["alt"] == "ink") for pictures in (light, dark)]
    assert ink[0]["legible"] >= LEGIBLE and ink[1]["legible"] == 0
    assert [p["alt"] for p in light if not p["alt"]] == [""] and ink[0]["own"] == 500
    assert smallest(ink[0]) < SMALLEST < smallest({**ink[0], "width": 500.0})
    flat = next(p for p in light if p["alt"] == "flat")
    assert abs(flat["width"] / flat["height"] / (flat["pixels"] / flat["tall"]) - 1) > 0.02
    assert faults[DESK, "light"].layout["diagrams"][0]["smallest"] == 8


@pytest.mark.parametrize("view", [(DESK, "light"), (PHONE, "dark")])
def test_what_shuts_out_weak_eyes_is_found(faults, view):
    found = {violation.partition(":")[0] for violation in faults[view].violations}
    assert found >= {"color-contrast", "image-alt"}


def test_links_that_lead_nowhere_are_found(faulty):
    assert [reference for _, reference in broken(faulty)] == ["#nothing", __file__, "nowhere.html"]
    assert [reference for _, reference in malformed(faulty)] == [
        "file:///some/where/index.html",
        "htps://example.org",
        "http://localhost:8000/",
        "https:///index.html",
        "https://a b.org",
    ]
