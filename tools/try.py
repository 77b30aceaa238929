"""Find out what replacement is worth for a network of yours: plan, train both, compare, deploy, and one report."""

from importlib import import_module

main = import_module('repl_mm.cli.try').main  # a name that an import statement cannot take

if __name__ == '__main__':
    main()
