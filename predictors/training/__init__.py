"""Training: what predictors learn from, the price of a prediction, and which ranks are tried."""
