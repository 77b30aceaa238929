"""Write a data set of handwritten digits in COCO's or CityScapes' format, made from scikit-learn's."""

from repl_mm.cli.make_digit_scenes import main

if __name__ == '__main__':
    main()
