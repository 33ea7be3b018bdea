"""What a page of the site is like in a browser, and where its references lead."""

import functools
import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

DESK, PHONE = 1280, 390  # pixels wide
VIEWS = [(DESK, "light"), (PHONE, "light"), (DESK, "dark"), (PHONE, "dark")]
# By axe, which takes longest: each width and each theme once.
JUDGED = {(DESK, "light"), (PHONE, "dark")}
SERIOUS = {"serious", "critical"}
TALLEST = 8000  # pixels of a screenshot: the reference is ten times as long
SEEN = 1.6  # contrast to the ground: less are the lines of a grid and the edges of letters
READ = 3.0  # contrast that WCAG 2 asks of what is no running text
COMMON = 0.0005  # share of a figure's pixels: less is the noise of edges

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

  // What shows an element: the nearest thing around it that scrolls, else the block that it is in.
  const shows = (e) => {
    const around = [], look = (one) => getComputedStyle(one);
    for (let one = e.parentElement; one && one.tagName !== "ARTICLE"; one = one.parentElement)
      around.push(one);
    const bar = around.find((one) => /auto|scroll/.test(look(one).overflowX));
    const block = bar || around.find((one) => look(one).display !== "inline") || e.parentElement;
    const padding = parseFloat(look(block).paddingLeft) + parseFloat(look(block).paddingRight);
    return { room: block.clientWidth - padding, scrolls: Boolean(bar) };
  };
  const place = (e) => {
    const box = e.getBoundingClientRect();
    return { left: box.left + scrollX, top: box.top + scrollY, width: box.width,
             height: box.height };
  };
  const pictures = [...document.querySelectorAll("article img")].map((e) => ({
    ...place(e), ...shows(e), alt: (e.alt || "").trim(), pixels: e.naturalWidth,
    tall: e.naturalHeight, own: parseFloat(e.style.width) || e.naturalWidth,
    drawn: e.closest(".cell_output") !== null, photo: e.classList.contains("photos"),
    filter: getComputedStyle(e).filter }));
  const diagrams = [...document.querySelectorAll("article svg:has(text)")].map((e) => ({
    ...place(e), alt: (e.getAttribute("aria-label") || "").trim(), smallest: Math.min(
      ...[...e.querySelectorAll("text")].map((text) =>
        parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)) }));
  const tables = [...document.querySelectorAll("article table")].filter((e) => e.offsetWidth)
    .map((e) => ({ ...shows(e), width: Math.max(e.offsetWidth, e.scrollWidth),
                   columns: Math.max(...[...e.rows].map((row) => row.cells.length)),
                   text: e.textContent.trim().replace(/\\s+/g, " ").slice(0, 40) }));
  const code = document.querySelectorAll("article div.highlight pre").length;
  const copied = document.querySelectorAll("article button.copybtn").length;
  return { beyond, pictures, diagrams, tables, uncopied: code - copied,
           height: root.scrollHeight, sorts: document.querySelectorAll("th.sortable").length };
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

    @property
    def figures(self):
        """Pictures and diagrams alike."""
        return self.layout["pictures"] + self.layout["diagrams"]


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


def references(root):
    """Return (file, reference) of all that the pages of a site refer to."""
    # The theme leaves templates there.
    files = sorted(path for path in root.rglob("*.html") if "_static" not in path.parts)
    return [(file, reference) for file in files for reference in sorted(parsed(file).references)]


def broken(root):
    """Return (page, reference) of every reference to no file of the site or to no anchor."""
    found, root = [], root.resolve()
    for file, reference in references(root):
        parts = urlsplit(reference)
        target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        missing = (
            not target.is_file()
            or root not in target.parents
            or (target.suffix == ".html" and unquote(parts.fragment) not in parsed(target).anchors)
        )
        if not (parts.scheme or parts.netloc) and missing:
            found.append((file.relative_to(root).as_posix(), reference))
    return found


def malformed(root):
    """Return (page, reference) of every reference out of the site that no other machine follows."""
    found, root = [], root.resolve()
    for file, reference in references(root):
        parts = urlsplit(reference)
        if not (parts.scheme or parts.netloc) or parts.scheme in ("mailto", "data"):
            continue
        host = re.fullmatch(r"([\w-]+\.)+[a-z]{2,}", parts.hostname or "", re.ASCII)
        if parts.scheme not in ("https", "http") or not host or re.search(r"[\s<>{}]", reference):
            found.append((file.relative_to(root).as_posix(), reference))
    return found


def legible(picture):
    """Return the share of a picture's colours that stand out from its ground.

    The ground is the most common colour; colours are told apart in 32 steps each of red, green and
    blue, and those of few pixels or almost of the ground do not count. 0 where there are none.
    """
    red, green, blue = np.asarray(picture.convert("RGB")).reshape(-1, 3).T.astype(np.int64) >> 3
    pixels = np.bincount(red << 10 | green << 5 | blue, minlength=32**3)
    levels = np.stack([np.arange(32**3) >> shift & 31 for shift in (10, 5, 0)], axis=1)
    linear = ((levels * 8 + 4) / 255) ** 2.2
    light = linear @ [0.2126, 0.7152, 0.0722] + 0.05
    ground = light[pixels.argmax()]
    contrast = np.maximum(light, ground) / np.minimum(light, ground)
    seen = contrast[(pixels >= COMMON * pixels.sum()) & (contrast > SEEN)]
    return float(np.mean(seen >= READ)) if len(seen) else 0.0


def look(tab, one, file=None):
    """Measure the layout of a visit and how legible its figures are; leave a picture in `file`."""
    one.layout = tab.evaluate(LAYOUT)
    lowest = max((figure["top"] + figure["height"] for figure in one.figures), default=0)
    height = min(one.layout["height"], max(TALLEST, lowest))
    if not (file or one.figures):
        return
    clip = {"x": 0, "y": 0, "width": one.width, "height": height}
    shot = tab.screenshot(path=file, full_page=True, clip=clip, animations="disabled")
    page = Image.open(io.BytesIO(shot))
    for figure in one.figures:
        left, top = figure["left"], figure["top"]
        right = min(left + figure["width"], one.width)
        shown = page.crop(tuple(map(round, (left, top, right, top + figure["height"]))))
        figure["legible"] = legible(shown) if min(shown.size) else 0.0


def judge(tab):
    """Return what axe finds serious or critical on a page."""
    options = {"resultTypes": ["violations"], "preload": False}
    return [
        f"{v['id']}: {v['nodes'][0]['html'][:120]} ({len(v['nodes'])})"
        for v in Axe().run(tab, options=options).response["violations"]
        if v["impact"] in SERIOUS
    ]


def visit(browser, root, page, pictures=None):
    """Return a Visit of a page for each of VIEWS.

    Where `pictures` is a folder, leave a picture of each in it, named by the page's path.
    """
    name = page.removeprefix("book/").removesuffix(".html").replace("/", "-")
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
        look(tab, visits[-1], pictures and pictures / f"{name}-{width}-{scheme}.png")
        if (width, scheme) in JUDGED:
            visits[-1].violations = judge(tab)
    context.close()
    return visits


def search(tab, root, words):
    """Return the pages that the site's own search finds."""
    tab.goto((root / "search.html").as_uri() + f"?q={quote(words)}")
    tab.wait_for_function(
        "document.querySelector('#search-results h2')?.innerText.includes('Results')"
    )
    links = tab.query_selector_all("#search-results li > a")
    return [re.split("[?#]", link.get_attribute("href"))[0] for link in links]
