"""`tsconvert plan`: what a conversion takes, and how fast its result runs."""
