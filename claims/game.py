"""The quickstart's game form, the one that `make demo` takes where two cores are fast enough, on several seeds.

`python -m claims.game` writes claims/results/game.json and its part of docs/quickstart-results.md; what is trained
and measured is in `claims.short_forms`. GAD is also played without the guard on length.
"""

from __future__ import annotations

from claims.short_forms import Form, main

FORM = Form(
    name="game",
    says="The quickstart's game form and its controls.",
    of_demo="game-8",
    headline="GAD",
    other=("gad_unguarded", "GAD without the guard on length", "adversarial.length_guard=false"),
    first_seed=1012,
)
"""It was chosen on seeds up to 1011."""

if __name__ == "__main__":
    main("claims.game", FORM, seeds=2)
