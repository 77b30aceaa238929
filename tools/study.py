"""Train what a table of a paper compares, and write the table."""

from repl_mm.cli.study import main

if __name__ == '__main__':
    main()
