"""What a config's network costs: predicted from the method's equations, and counted on the network itself."""

from repl_mm.cli.cost import main

if __name__ == '__main__':
    main()
