"""One bad caller beside one good one, for each way in which a caller can be bad.

`python -m strangers` with `tests` on the Python path, or `make strangers`, prints how long the good one waits
beside each; tests/service/bad_input/test_strangers.py asserts that it loses no answer.

models.py    what is served
good.py      the steady caller whose every answer is checked
field.py     what an attack plays on: connections, a pace, an end; and the list of all attacks
attacks/     the attacks
play.py      the process of one player, good or bad
trial.py     a server, a good caller, an attack, and what came of it
"""
