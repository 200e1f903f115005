"""The shortest game form of `make demo`, on several seeds: three epochs of imitation, six steps of the game.

`python -m claims.short_game` writes claims/results/short-game.json and its part of docs/quickstart-results.md; what is
trained and measured is in `claims.short_forms`.
"""

from __future__ import annotations

from claims.short_forms import Form, main

FORM = Form(
    name="short-game",
    says="The quickstart's shortest game form and its controls.",
    of_demo="game-3+6",
    headline="GAD",
    first_seed=1430,
)
"""No seed decided anything about this form."""

if __name__ == "__main__":
    main("claims.short_game", FORM, seeds=2)
