"""Copy the pages of docs/methods into the package, for `aepo methods NAME`. pyproject.toml says all else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithPages(build_py):
    """Build the package with its pages."""

    def run(self) -> None:
        """Build, then copy. An editable installation reads the pages from docs."""
        super().run()
        if not self.editable_mode:
            pages = Path(self.build_lib) / "aepo" / "pages"
            pages.mkdir(parents=True, exist_ok=True)
            for page in Path("docs/methods").glob("*.md"):
                shutil.copy(page, pages)


setup(cmdclass={"build_py": WithPages})
