"""`tsconvert demo`: the whole chain on one model."""
