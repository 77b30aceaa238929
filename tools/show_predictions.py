"""Draw images, ground truth and what finished runs predict side by side, for detection and segmentation."""

from repl_mm.cli.show_predictions import main

if __name__ == '__main__':
    main()
