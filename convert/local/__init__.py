"""Recovery layer by layer, in a sweep with a dense teacher."""
