"""Fit a network with computing layers to a trained one, without training."""

from repl_mm.cli.warm_start import main

if __name__ == '__main__':
    main()
