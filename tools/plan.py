"""Find the fewest blocks to replace for a saving of time or memory, measured on this machine."""

from repl_mm.cli.plan import main

if __name__ == '__main__':
    main()
