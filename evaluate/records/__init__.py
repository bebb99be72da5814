"""What finished outputs say of themselves."""
