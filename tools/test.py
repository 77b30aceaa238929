"""Test a checkpoint of mmpretrain, mmdet or mmseg."""

from repl_mm.cli.test import main

if __name__ == '__main__':
    main()
