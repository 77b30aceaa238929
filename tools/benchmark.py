"""Measure on this machine what replacement is worth: tables (CSV, Markdown) and a picture."""

from repl_mm.cli.benchmark import main

if __name__ == '__main__':
    main()
