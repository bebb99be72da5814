"""Thresholds: of one predictor by the energy it keeps, of a whole model by its loss in predicted mode."""
