"""Add the generated pages of the reference to the documentation; mkdocs calls `on_files`."""

from __future__ import annotations

from generate.pages import PAGES
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write every generated page into the site as if it were a file of docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files
