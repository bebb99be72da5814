"""The one file that says what a conversion runs and what may come out of it: for `convert`, `check` and `demo`."""
