"""Look whether a published data set is on disk, complete and sound, and say what to do about it."""

from repl_mm.cli.prepare_data import main

if __name__ == '__main__':
    main()
