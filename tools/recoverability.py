"""Which blocks of a trained network can be replaced, and what each costs of the score."""

from repl_mm.cli.recoverability import main

if __name__ == '__main__':
    main()
