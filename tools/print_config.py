"""Print a config as a run gets it: after inheritance and options."""

from repl_mm.cli.print_config import main

if __name__ == '__main__':
    main()
