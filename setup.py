"""What pyproject.toml cannot say: configs, tools and the model index go into the package, as in OpenMMLab's own.

``mim`` and ``_base_ = 'repl_mm::...'`` look for them in ``repl_mm/.mim``: copies in a wheel, links if it is editable.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CARRIED = ('configs', 'tools', 'model-index.yml')


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        place = (ROOT if self.editable_mode else Path(self.build_lib)) / 'repl_mm/.mim'
        place.mkdir(parents=True, exist_ok=True)
        for name in CARRIED:
            target = place / name
            if self.editable_mode:
                if not target.is_symlink():
                    target.symlink_to(Path('../..', name))
            elif (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy(ROOT / name, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        place = Path(self.build_lib, 'repl_mm/.mim')
        return super().get_outputs(include_bytecode) + [str(path) for path in place.rglob('*') if path.is_file()]


setup(cmdclass=dict(build_py=BuildWithConfigs))
