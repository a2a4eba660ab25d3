"""Servers that a user would pick instead, each as its own documentation writes it; `registry` says how they run.

But for `registry`, a module here runs in its peer's virtual environment, with this folder as its working directory,
and can import nothing of Tailstack.
"""
