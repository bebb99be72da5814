"""Helpers that every part uses: errors, progress, files, locks, processes, options."""
