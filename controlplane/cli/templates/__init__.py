"""Files that commands write into the artifacts that they publish."""
