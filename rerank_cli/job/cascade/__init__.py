"""Two scorers: a cheap one reads every candidate, the expensive one those that can still matter (`--first`).

    choice.py        which passages of a list the second scorer reads; how well the result agrees with a full run
    scorer.py        one of the two: its engine, its store, what it has done
    shares.py        the progress of a run with both
    run_cascade.py   takes windows from the first scorer and gives ranked windows

`../first_scorer.py` says what `--first` and `--first-keep` mean, and which options they exclude.

Passages that the second scorer has read come first, in the order of its scores. The others follow in the order of the
first scorer. Scores of two scorers are never compared with each other, and each passage names the scorer of its score.

The rule for the choice is measured once, on the first window of the whole input, and kept in the journal: so shards and
resumed runs choose alike. A row depends only on its list and on that measurement.
"""
