"""Types by size: the best file of so many bytes, each tensor's type chosen by what its errors cost."""
