"""Updates of student and discriminator, and the bookkeeping of a training stage."""
