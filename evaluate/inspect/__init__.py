"""`tsconvert inspect`: what a file or folder holds."""
