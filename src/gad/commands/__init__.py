"""The verbs of `gad`: their arguments and help. What they do is elsewhere, and imported when it is done."""
