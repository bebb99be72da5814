"""What every part stands on: errors, progress, files, locks, processes, options."""
