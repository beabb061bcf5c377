"""Features of a frozen prefix, kept in memory or on disk, in place of images."""
