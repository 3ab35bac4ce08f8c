"""What is called of torch, Pyro and zuko that they may change without notice: the lowest layer. For each name a test in
``tests/test_compat.py`` shows what is relied on; nothing else in the package calls what is private to them.
"""
