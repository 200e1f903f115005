"""Language models as students and discriminators."""
