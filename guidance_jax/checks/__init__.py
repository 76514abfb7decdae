"""Argument validation: everything that tells a person what is wrong.

`kinds` are the annotations of parameters (`Scale`, `Positive`, `Count`), `door` checks them when a public function is called,
`running` checks what `sample` receives, `outcomes` what a user's own function returns, and `traced` what is known only when a
program runs.
"""
