"""Show which blocks of a config's backbone are replaced, by what, and why other positions were refused."""

from repl_mm.cli.sites import main

if __name__ == '__main__':
    main()
