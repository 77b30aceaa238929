"""Write a checkpoint of a config's model as it starts, for runs that shall start from the same weights."""

from repl_mm.cli.seed_checkpoint import main

if __name__ == '__main__':
    main()
