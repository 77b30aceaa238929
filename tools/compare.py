"""Compare finished runs: scores and costs as a table (terminal, Markdown, JSON) and as a picture."""

from repl_mm.cli.compare import main

if __name__ == '__main__':
    main()
