"""Two scorers: a cheap one reads every candidate, the dear one those that can still matter (`--first`).

    choice.py        which passages of a list the second scorer reads; how well the result agrees with a full run
    scorer.py        one of the two: its engine, its store, what it has done
    shares.py        how far a run of both is
    run_cascade.py   the windows of the first scorer in, ranked windows out

`../first_scorer.py` says what `--first` and `--first-keep` mean, and what they cannot be had with.

Passages that the second scorer has read stand first, by its scores. The others stand behind them, by the scores of the
first. Scores of two scorers are never compared with each other, and each passage says whose its score is.

What decides the choice is measured once, on the first window of the whole input, and stands in the journal: so shards,
and runs that go on, choose alike. A row depends on its list and on that measurement alone.
"""
