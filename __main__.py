"""`python -m tsconvert` is `tsconvert`."""

from .cli import main

main()
