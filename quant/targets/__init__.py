"""The engines that files are written for."""
