"""`tsconvert check`: a conversion with thresholds, for CI."""
