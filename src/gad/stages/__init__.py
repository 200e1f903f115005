"""One file per stage. Stages meet on disk, never by import."""
