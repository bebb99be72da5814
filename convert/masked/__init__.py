"""Recovery with predictors in the loop: the model learns under their mask."""
