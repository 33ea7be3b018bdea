"""The built book in a real browser, as a reader meets it: from disk, without a network, on a desk
and on a phone, in light and in dark.

`make site-test` runs it on a site that was built before ($DATADREAM_SITE); without one, four of the
book's pages are built for it. Pictures of every page are left in _build/screenshots.
"""

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from conftest import ROOT

pytestmark = pytest.mark.site

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESK, PHONE = 1280, 390  # pixels wide
VIEWS = [(DESK, "light"), (PHONE, "light"), (DESK, "dark"), (PHONE, "dark")]
# By axe, which takes longest: each width and each theme once.
JUDGED = {(DESK, "light"), (PHONE, "dark")}
SERIOUS = {"serious", "critical"}
TALLEST = 8000  # pixels of a screenshot: the reference is ten times as long
SMALL = {
    "format": "jb-book",
    "root": "book/claim",
    "chapters": [
        {
            "file": "book/published",
            "sections": [{"file": "book/paper_scale"}, {"file": "book/references"}],
        }
    ],
}

# What of a page is wrong that only its layout tells. An element that reaches beyond the screen is a
# fault unless something around it scrolls.
LAYOUT = """() => {
  const hides = (e) => /auto|scroll|hidden|clip/.test(getComputedStyle(e).overflowX);
  const scrolls = (e) => e && (hides(e) || scrolls(e.parentElement));
  const beyond = [...document.querySelectorAll("article *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && e.offsetWidth
      && !scrolls(e.parentElement))
    .map((e) => `<${e.tagName.toLowerCase()}> ${e.textContent.trim().slice(0, 40)}`);
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) beyond.push(`the page is ${root.scrollWidth} wide`);
  const pictures = [...document.querySelectorAll("article img")].map((e) => ({
    alt: (e.alt || "").trim(), width: e.width, height: e.height, pixels: e.naturalWidth,
    tall: e.naturalHeight, drawn: e.closest(".cell_output") !== null,
    photo: e.classList.contains("photos"), filter: getComputedStyle(e).filter }));
  const code = document.querySelectorAll("article div.highlight pre").length;
  const copied = document.querySelectorAll("article button.copybtn").length;
  return { beyond, pictures, uncopied: code - copied, height: root.scrollHeight,
           sorts: document.querySelectorAll("th.sortable").length };
}"""


@dataclass
class Visit:
    """One page in one view: what it wrote and asked for, what its layout is like, what axe says."""

    page: str
    width: int
    scheme: str
    errors: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    layout: dict = field(default_factory=dict)
    violations: list = field(default_factory=list)

    def __str__(self):
        return f"{self.page} at {self.width} px, {self.scheme}"


class Page(HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.references = {""}, set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.anchors |= {named[name] for name in ("id", "name") if named.get(name)}
        self.references |= {named[name] for name in ("href", "src") if named.get(name)}


@functools.cache
def parsed(file):
    """Return the Page of a file."""
    return Page(file.read_text())


def broken(root):
    """Return (page, reference) of every reference within the site that leads to no file or no
    anchor.
    """
    found = []
    # The theme leaves templates there.
    for file in sorted(path for path in root.rglob("*.html") if "_static" not in path.parts):
        for reference in sorted(parsed(file).references):
            parts = urlsplit(reference)
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            missing = not target.is_file() or (
                target.suffix == ".html" and unquote(parts.fragment) not in parsed(target).anchors
            )
            if not (parts.scheme or parts.netloc) and missing:
                found.append((file.relative_to(root).as_posix(), reference))
    return found


def visit(browser, root, page, pictures=None):
    """Return a Visit of a page for each of VIEWS; where `pictures` is a folder, leave a picture
    of each in it.
    """
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context()
    context.set_default_timeout(120_000)
    tab, visits = context.new_page(), []
    tab.on(
        "console",
        lambda message: visits[-1].errors.append(message.text) if message.type == "error" else None,
    )
    tab.on("pageerror", lambda error: visits[-1].errors.append(str(error)))
    tab.route(
        lambda url: not url.startswith(("file:", "data:", "blob:")),
        lambda route: (visits[-1].requests.append(route.request.url), route.abort()),
    )
    for width, scheme in VIEWS:
        visits.append(Visit(page, width, scheme))
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        if len(visits) == 1:
            tab.goto((root / page).as_uri(), wait_until="load")
        # The theme makes what scrolls reachable by keyboard a moment after each change.
        tab.wait_for_timeout(400)
        visits[-1].layout = tab.evaluate(LAYOUT)
        if pictures:
            clip = {
                "x": 0,
                "y": 0,
                "width": width,
                "height": min(visits[-1].layout["height"], TALLEST),
            }
            tab.screenshot(
                path=pictures / f"{Path(page).stem}-{width}-{scheme}.png", full_page=True, clip=clip
            )
        if (width, scheme) in JUDGED:
            results = (
                Axe()
                .run(tab, options={"resultTypes": ["violations"], "preload": False})
                .response["violations"]
            )
            visits[-1].violations = [
                f"{v['id']}: {v['nodes'][0]['html'][:120]} ({len(v['nodes'])})"
                for v in results
                if v["impact"] in SERIOUS
            ]
    context.close()
    return visits


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
    (home / "toc.yml").write_text(yaml.safe_dump(SMALL))
    build = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        "-W",
        "--keep-going",
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
            or abs(p["width"] / p["height"] / (p["pixels"] / p["tall"]) - 1) > 0.03
        ]
    )


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


def test_the_search_finds_a_method(browser, site):
    tab = browser.new_page()
    tab.goto((site / "search.html").as_uri() + "?q=LoFT")
    tab.wait_for_selector("#search-results li")
    links = [
        link.get_attribute("href") for link in tab.query_selector_all("#search-results li > a")
    ]
    tab.close()
    assert any(
        "book/" in link and (site / link.partition("#")[0].partition("?")[0]).is_file()
        for link in links
    ), links


def test_a_table_sorts_by_keyboard(browser, site, visits):
    page = next(
        one.page for one in visits if one.layout["sorts"] and one.page.endswith("claim.html")
    )
    tab = browser.new_page()
    tab.goto((site / page).as_uri())
    table = tab.locator(".cell_output table:has(th.sortable)").first
    head, column = table.locator("th.sortable").filter(has_text="Top-1"), 3

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


FAULTY = """<!doctype html><html lang="en"><head><title>Faults</title></head>
<body><main><h1>Faults</h1><article>
<p style="color: #bbb; background: #fff">Too pale to be read.</p>
<img src="dot.svg" width="10" height="10"> <p style="width: 3000px">Too wide.</p>
<div style="overflow-x: auto; width: 100px"><p style="width: 3000px">It scrolls.</p></div>
<div class="highlight"><pre>uncopied</pre></div>
<a href="nowhere.html">a</a> <a href="#nothing">b</a> <a href="faults.html#here" id="here">c</a>
<script src="https://example.org/script.js"></script>
<script>console.error("a fault"); missing();</script></article></main></body></html>"""


def test_each_of_these_checks_finds_its_fault(browser, tmp_path):
    (tmp_path / "faults.html").write_text(FAULTY)
    (tmp_path / "dot.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
    )
    found = visit(browser, tmp_path, "faults.html")[0]
    assert any("a fault" in error for error in found.errors) and any(
        "missing is not defined" in error for error in found.errors
    )
    assert found.requests == ["https://example.org/script.js"]
    assert [text for text in found.layout["beyond"] if "Too wide" in text] and not [
        text for text in found.layout["beyond"] if "It scrolls" in text
    ]
    assert [p["alt"] for p in found.layout["pictures"]] == [""] and found.layout["uncopied"] == 1
    assert {violation.partition(":")[0] for violation in found.violations} >= {
        "color-contrast",
        "image-alt",
    }
    assert broken(tmp_path) == [("faults.html", "#nothing"), ("faults.html", "nowhere.html")]
