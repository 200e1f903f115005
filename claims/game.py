"""The quickstart's game form, the one that `make demo` takes where two cores are fast enough, on several seeds.

`python -m claims.game` writes claims/results/game.json and its part of docs/quickstart-results.md; what is trained and
measured is in `claims.short_forms`.
"""

from __future__ import annotations

from claims.short_forms import Form, main

FORM = Form(
    name="game",
    says="The quickstart's game form and its controls.",
    of_demo="game-4+10",
    headline="GAD",
    first_seed=1420,
)
"""The form was made on seeds up to 1411; those from here on decided nothing."""

if __name__ == "__main__":
    main("claims.game", FORM, seeds=2)
