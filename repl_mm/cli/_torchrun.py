"""torchrun, as ``dist_*.sh`` start it: what its processes have said themselves is not said again.

By itself torchrun buries the one line of a process under a traceback and a table of its own, and ends with 1 whatever
the processes ended with.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def main() -> None:
    args = parse_args(sys.argv[1:])
    logging.disable(logging.ERROR)  # of torchrun; its processes have loggers of their own
    try:
        run(args)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode != 2:  # with which a process ends that has said in a line what is wrong
            print(error.format_msg(), file=sys.stderr)
        raise SystemExit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None


if __name__ == '__main__':
    main()
