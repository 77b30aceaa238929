"""Write pictures of what a model predicts: boxes (mmdet), a map (mmseg) or a class (mmpretrain) for each image."""

from repl_mm.cli.image_demo import main

if __name__ == '__main__':
    main()
