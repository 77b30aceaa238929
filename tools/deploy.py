"""Turn a trained checkpoint into a static model: weights, the config that belongs to them, and exports."""

from repl_mm.cli.deploy import main

if __name__ == '__main__':
    main()
