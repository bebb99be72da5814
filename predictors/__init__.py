"""What fires in a sparse model, and small networks that foresee it."""
