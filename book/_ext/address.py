"""Sphinx extension: buttons, canonical addresses and the sitemap, by the repository's address.

The address is `project_repository` in _config.yml, else GITHUB_REPOSITORY, which GitHub Actions
sets, both as owner/name. The site's is BOOK_URL, else that of the repository's GitHub Pages.
Without an address the book has none of these.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote

import yaml
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

BRANCH = "main"
NAME = re.compile(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+")
# Templates that run with their default parameters in the two gigabytes of a free Binder machine.
# `mini_base` is not among them: it needs the font packages, which binder/ leaves out.
ON_BINDER = {"dataset", "analysis", "ablation", "your_data"}
# Pages of prose that tell the reader to run a notebook.
PROSE = {"book/reproduce": "dataset", "book/extend": "dataset"}


def repository(config: Config) -> str:
    """Return owner/name of the repository on GitHub, "" if it is unknown."""
    name = config.project_repository or os.environ.get("GITHUB_REPOSITORY", "")
    if name and not NAME.fullmatch(name):
        raise ConfigError(
            f"the repository is {name!r}; give owner/name as on GitHub, in `project_repository` of "
            "_config.yml or in GITHUB_REPOSITORY"
        )
    return name


def site(name: str) -> str:
    """Return the site's address, with a slash at its end."""
    owner, project = name.split("/")
    host = f"{owner.lower()}.github.io"
    own = f"https://{host}/" if project.lower() == host else f"https://{host}/{project}/"
    return (os.environ.get("BOOK_URL") or own).rstrip("/") + "/"


def templates(home: Path) -> dict[str, str]:
    """Return page -> name of the template in notebooks/ that it was executed from."""
    runs = yaml.safe_load((home / "notebooks" / "study.yaml").read_text())["runs"]
    return {
        f"book/{folder}/{name}": run["notebook"]
        for name, run in runs.items()
        for folder in ("study", "runs")
    }


def configure(app: Sphinx, config: Config) -> None:
    """Set the theme's options and Sphinx's own from the address."""
    name = repository(config)
    if not name:
        return
    address = f"https://github.com/{name}"
    config.html_theme_options |= {
        "repository_url": address,
        "repository_branch": BRANCH,
        "use_repository_button": True,
        "use_edit_page_button": True,
        "use_issues_button": True,
    }
    # What can be edited of an executed page is its template.
    sources = {
        page: f"notebooks/{made_by}.ipynb" for page, made_by in templates(Path(app.srcdir)).items()
    }
    config.html_context |= {
        "page_sources": sources,
        "edit_page_provider_name": "GitHub",
        "edit_page_url_template": f"{address}/edit/{BRANCH}/"
        "{{ page_sources.get(pagename, file_name) }}",
    }
    config.html_baseurl = site(name)
    config.sitemap_url_scheme = "{link}"
    config.sitemap_excludes = ["search.html", "genindex.html", "py-modindex.html", "_modules/*"]
    config.sitemap_show_lastmod = True
    app.setup_extension("sphinx_sitemap")


def add_binder(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Add a button that opens the page's notebook on Binder, where a free machine can run it.

    The theme's own button would open the executed page or a page of prose, of which neither is the
    notebook that one runs.
    """
    name = repository(app.config)
    notebook = PROSE.get(pagename) or context.get("page_sources", {}).get(pagename, "")
    stem = Path(notebook).stem
    if name and stem in ON_BINDER:
        path = quote(f"lab/tree/notebooks/{stem}.ipynb", safe="")
        context["header_buttons"].append(
            {
                "type": "link",
                "url": f"https://mybinder.org/v2/gh/{name}/{BRANCH}?urlpath={path}",
                "text": "",
                "tooltip": f"Run notebooks/{stem}.ipynb on Binder, with its default parameters",
                "icon": "fas fa-rocket",
                "label": "launch-binder-button",
            }
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_config_value("project_repository", "", "env")
    app.connect("config-inited", configure)
    app.connect("html-page-context", add_binder, priority=600)  # the theme adds its own at 501
    return {"parallel_read_safe": True, "parallel_write_safe": True}
