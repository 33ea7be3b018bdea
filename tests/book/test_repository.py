"""The Sphinx extension that knows the repository's address, in builds of small pages."""

import os
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROOT
from sphinx.application import Sphinx
from sphinx.errors import ConfigError
from sphinx.util.docutils import docutils_namespace, patch_docutils

sys.path.append(str(ROOT / "book" / "_ext"))
import address

BOOK = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
STUDY = "runs:\n  digits: {notebook: dataset}\n  mini_base: {notebook: mini_base}\nsmoke: {}\n"
PAGES = {
    "book/index": "# Front\n\n```{toctree}\nreproduce\nstudy/digits\nstudy/mini_base\n```\n",
    "book/reproduce": "# Prose that says run\n",
    "book/study/digits": "# Executed\n",
    "book/study/mini_base": "# Executed, too large for Binder\n",
}
REPOSITORY = "https://github.com/Some-one/data.dream"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return build(environment, **settings) -> (page -> parsed HTML, the site's folder)."""
    for page, text in PAGES.items():
        file = tmp_path / "source" / f"{page}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "source" / "notebooks").mkdir()
    (tmp_path / "source" / "notebooks" / "study.yaml").write_text(STUDY)
    for name in ("GITHUB_REPOSITORY", "BOOK_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(environment, **settings):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        overrides = {
            "extensions": ["myst_parser", "sphinx_last_updated_by_git", "address"],
            "root_doc": "book/index",
            "html_theme": "sphinx_book_theme",
            "html_context": {"default_mode": "auto"},
            "html_theme_options": {"show_toc_level": 2},
            "suppress_warnings": BOOK["suppress_warnings"],
            "git_untracked_show_sourcelink": BOOK["git_untracked_show_sourcelink"],
            **settings,
        }
        site = tmp_path / "site"
        with patch_docutils(), docutils_namespace():
            app = Sphinx(
                tmp_path / "source",
                None,
                site,
                tmp_path / "trees",
                "html",
                overrides,
                status=None,
                warningiserror=True,
                freshenv=True,
            )
            app.build(force_all=True)
        parsed = {p: BeautifulSoup((site / f"{p}.html").read_text(), "html.parser") for p in PAGES}
        return parsed, site

    return run


def links(page):
    """Return the addresses outside of the site that a page's header leads to, by tooltip."""
    found = page.select(".bd-header-article a[href^='https:']")
    return {(a.get("title") or a.get("aria-label")): a["href"] for a in found}


def test_with_an_address_each_page_leads_to_its_source(build):
    pages, _ = build({"GITHUB_REPOSITORY": "Some-one/data.dream"})
    found = {page: links(parsed) for page, parsed in pages.items()}
    for page, own in found.items():
        assert own["Source repository"] == REPOSITORY
        assert own["Open an issue"].startswith(
            f"{REPOSITORY}/issues/new?title=Issue%20on%20page%20%2F{page}.html"
        )
    assert found["book/reproduce"]["Suggest edit"] == f"{REPOSITORY}/edit/main/book/reproduce.md"
    assert (
        found["book/study/digits"]["Suggest edit"]
        == f"{REPOSITORY}/edit/main/notebooks/dataset.ipynb"
    )


def test_binder_opens_a_notebook_that_a_free_machine_runs(build):
    pages, _ = build({"GITHUB_REPOSITORY": "Some-one/data.dream"})
    opened = {
        page: parse_qs(urlsplit(url).query)["urlpath"]
        for page, parsed in pages.items()
        for url in links(parsed).values()
        if url.startswith("https://mybinder.org/v2/gh/Some-one/data.dream/main?")
    }
    notebook = ["lab/tree/notebooks/dataset.ipynb"]
    assert opened == {"book/reproduce": notebook, "book/study/digits": notebook}


@pytest.mark.parametrize(
    "environment, base",
    [
        ({}, "https://some-one.github.io/data.dream/"),
        ({"BOOK_URL": "https://book.example.org"}, "https://book.example.org/"),
        ({"GITHUB_REPOSITORY": "Some-one/some-one.github.io"}, "https://some-one.github.io/"),
    ],
)
def test_the_sitemap_and_canonical_addresses_are_the_site_s(build, environment, base):
    pages, site = build({"GITHUB_REPOSITORY": "Some-one/data.dream", **environment})
    listed = [
        e.text for e in ElementTree.parse(site / "sitemap.xml").iter() if e.tag.endswith("loc")
    ]
    assert sorted(listed) == [f"{base}{page}.html" for page in sorted(PAGES)]
    for page, parsed in pages.items():
        assert parsed.find("link", rel="canonical")["href"] == f"{base}{page}.html"


def test_the_configured_address_goes_before_the_environment_s(build):
    pages, _ = build({"GITHUB_REPOSITORY": "a/fork"}, project_repository="Some-one/data.dream")
    assert links(pages["book/index"])["Source repository"] == REPOSITORY


def test_without_an_address_no_page_leads_out_and_there_is_no_sitemap(build):
    pages, site = build({})
    assert not any(links(parsed) for parsed in pages.values())
    assert not (site / "sitemap.xml").exists()
    assert not any(parsed.find("link", rel="canonical") for parsed in pages.values())


def test_what_is_no_address_is_refused_with_what_is_accepted(build):
    with pytest.raises(ConfigError, match="'https://x/y'; give owner/name"):
        build({}, project_repository="https://x/y")


def test_every_template_of_the_study_exists_and_so_does_what_binder_opens():
    there = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(address.templates(ROOT).values()) <= there
    assert address.ON_BINDER | set(address.PROSE.values()) <= there
    assert all((ROOT / f"{page}.md").is_file() for page in address.PROSE)


def test_each_page_has_the_date_of_its_last_commit(build, tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", tmp_path / "source"]
    day = {**os.environ, "GIT_AUTHOR_DATE": "2024-03-02T12:00:00Z"}
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "Write it"]):
        subprocess.run([*git, *command], check=True, env=day)
    pages, _ = build({}, html_last_updated_fmt=BOOK["html_last_updated_fmt"])
    dates = {page: parsed.select_one(".last-updated").get_text() for page, parsed in pages.items()}
    assert {" ".join(text.split()) for text in dates.values()} == {"Last updated on 02 March 2024."}


def test_without_git_pages_are_built_and_have_no_date(build, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    pages, _ = build({}, html_last_updated_fmt=BOOK["html_last_updated_fmt"])
    assert not any(parsed.select(".last-updated") for parsed in pages.values())
