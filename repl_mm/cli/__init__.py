"""The command line: one module a verb, each with ``build_parser`` and ``main``.

A module imports torch and the host libraries when its arguments are parsed, so that ``--help`` and mistyped options are
answered at once.
"""
