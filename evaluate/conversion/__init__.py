"""`tsconvert convert` and `demo`: a whole conversion within a time, or as a recipe says it."""
