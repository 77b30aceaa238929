"""Write pictures of what a config's data set gives after its pipeline: images with their boxes, map or class."""

from repl_mm.cli.browse_dataset import main

if __name__ == '__main__':
    main()
