"""The one place that changes the host libraries, beside the operators that ``import repl_mm`` lets mmcv find."""

from functools import cache

import repl_mm.registry  # noqa: F401  # our scope, and _base_ = 'repl_mm::...'
from repl_mm.compat import keep_archives_inside, open_loaders_lazily, require_one_stack, resolve_mmseg_configs
from repl_mm.engine.checkpoints import restrict_loading
from repl_mm.engine.cpu import use_cpu_amp
from repl_mm.engine.files import use_atomic_files
from repl_mm.engine.logs import import_hosts
from repl_mm.engine.lookup import restrict_lookup


@cache
def install() -> None:
    """Let the host libraries do in this process what the command-line tools rely on, which call it first.

    - Local files are there whole or not at all (:mod:`repl_mm.engine.files`).
    - Checkpoints are read without running what they hold (:mod:`repl_mm.engine.checkpoints`).
    - The text of a config names what is registered, and data files hold data (:mod:`repl_mm.engine.lookup`).
    - ``AmpOptimWrapper`` works on a machine without an accelerator (:mod:`repl_mm.engine.cpu`).
    - ``_base_ = 'mmseg::...'`` is found, and archives unpack into their folder alone (:mod:`repl_mm.compat`).

    Training with a host's own tools, ``repl_mm.CheckpointHook`` sees to the first by itself.

    Raises:
        ValueError: Host libraries are installed beside their forks.
    """
    require_one_stack()
    import_hosts()  # which the rest would do with all that they print
    use_atomic_files()
    restrict_loading()
    restrict_lookup()
    use_cpu_amp()
    resolve_mmseg_configs()
    open_loaders_lazily()
    keep_archives_inside()
