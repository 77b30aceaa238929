"""Train a model of mmpretrain, mmdet or mmseg from its config."""

from repl_mm.cli.train import main

if __name__ == '__main__':
    main()
