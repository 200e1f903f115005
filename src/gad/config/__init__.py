"""The run file as frozen, validated types."""
