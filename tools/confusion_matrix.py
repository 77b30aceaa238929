"""Draw which class is taken for which, from predictions that test.py --out has saved."""

from repl_mm.cli.confusion_matrix import main

if __name__ == '__main__':
    main()
