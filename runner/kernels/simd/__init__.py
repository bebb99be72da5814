"""LLVM vector code: how weights of each type become products and sums."""
