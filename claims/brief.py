"""The quickstart's brief form, the one that `make demo` takes on a CPU without bfloat16 instructions, on several seeds.

`python -m claims.brief` writes claims/results/brief.json and its part of docs/quickstart-results.md; what is trained
and measured is in `claims.short_forms`. GAD is also played with replies that are one update old: this process samples
them as servers would; it only saves no time.
"""

from __future__ import annotations

from claims.short_forms import Form, main

FORM = Form(
    name="brief",
    says="The quickstart's brief form and its controls.",
    of_demo="brief-9",
    headline="GAD + 0.5 x cross-entropy",
    other=("gad_one_step_off", "the same, replies one update old", "adversarial.one_step_off=true"),
    first_seed=600,
)
"""The form was chosen on seeds 0, 200, 201, 300, 301, 400, 401, 500 and 501; those from here on decided nothing."""

if __name__ == "__main__":
    main("claims.brief", FORM, seeds=4)
