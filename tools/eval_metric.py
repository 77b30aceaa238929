"""Score predictions that test.py --out has saved, by the metrics of a config, without the network."""

from repl_mm.cli.eval_metric import main

if __name__ == '__main__':
    main()
