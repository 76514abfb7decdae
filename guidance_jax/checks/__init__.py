"""Argument validation: every check, and every error message that a check raises.

- `kinds`: the annotations of parameters (`Scale`, `Positive`, `Count`).
- `door`: checks the annotations when a public function is called.
- `running`: checks the arguments of `sample`.
- `outcomes`: checks what a user's own function returns.
- `traced`: checks values that are known only when a program runs.
"""
