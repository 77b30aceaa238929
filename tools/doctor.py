"""What this machine can do with the project: each part against an oracle, in minutes."""

from repl_mm.cli.doctor import main

if __name__ == '__main__':
    main()
