"""The suite. Its folders mirror the packages."""
