"""The analyses of the papers on finished runs: what networks represent, and what replacing blocks does to them."""

from repl_mm.cli.analyze import main

if __name__ == '__main__':
    main()
