"""Studies, one a file: a question, the runs that answer it, and the claims they decide.

A study is a value of `bn_keras.study.Study`. It trains nothing itself: `train.py --study=NAME`
expands it into runs, and the report judges its claims over what they left behind. Figures that are
a study's own are declared where it is registered, as `metrics={name: (title, unit, worse end)}`.
"""
