"""What makes a run survive kill -9, a power cut and a full disk: its work folder, and the journal in it.

A run is a sequence of windows: whole queries, cut by the input and the options alone. Each window appends bytes to the
members of the job: rows, errors and, for an embedding model, what need not be computed twice. They lie in `OUT.job/`:

    OUT.job/lock      flock of the running process, with its pid and host
    OUT.job/rows      the rows, window after window: the output itself, or tables on their way to Parquet
    OUT.job/errors    the errors file
    OUT.job/vectors   an embedding model only: the vectors of the texts that are new in a window
    OUT.job/texts     `--embeddings` only: which texts these are
    OUT.job/journal   one line per commit: which windows, which bytes of each file above, their SHA-256, the counts
    OUT.job/output    Parquet only: the output, made from `rows` when all windows are done
    OUT.job/embeddings, OUT.job/report   made at the end

The states of a job, and what moves it from one to the next:

    absent    --- mkdir, flock --->            empty     nothing to lose; a run that ends here removes it
    empty     --- first commit record --->     running   a later run resumes after the last commit
    running   --- commit record --->           running
    running   --- `complete` record --->       placing   everything is computed; only names are left to give
    placing   --- renames, folder removed ---> absent    OUT exists

A commit appends the bytes, fsyncs the files that grew, appends one record to the journal and fsyncs the journal. What
lies before the last record is on disk. What lies after it does not belong to the run, and the next process cuts it off.

A run that its input ends (too many bad rows, a damaged file) says so in a last record, `bad input`. The next run
resumes if the input is the same, and starts over if it has changed.

`complete` is written when all files of the run are on disk. The renames after it (errors, report, vectors, OUT last,
then an fsync of their folders) can be repeated: a work file that is gone already has its name.

The journal ends at the first record that is torn or damaged, or whose SHA-256 is no longer that of its bytes in the
members: the run goes back to the commit before it, and no further. The checksum of a record covers the checksum before
it, so no record can be missing in between.

A run commits after a window if `--checkpoint-every` seconds have passed since the last commit, and when it stops. A
kill therefore costs the windows since then. No byte of OUT depends on when commits are made.

Something else may interfere at any time: another run that was given the lock, a clean-up script, an editor, a backup.
Who owns what, and what is promised then:

    OUT.job/             ours alone. A folder of that name that is not ours (`own_folder.py`) is never touched. Files
                         in it are opened without following links, and refused if they have a second name (a hard link)
                         or another owner.
    OUT.job/lock         names the run that holds it. If it is gone, replaced or taken by another run, this run ends
                         and writes, cuts and removes nothing more (`lock.py`).
    members, journal     appended to by this run alone. At each commit the name must still lead to the open file, and
                         its size must be what was appended. At the end the bytes must have the SHA-256 that was
                         computed while they were written (`seal.py`); else no file gets its name, nor does a table
                         made from them (`Job.reading`). The next run resumes after the last commit that is whole.
    what is read         other people's, read only. Checked before it is opened, at each commit and at the end
                         (`watch.py`). A change ends the run, and what was read since the last commit is dropped.
    OUT and its files    the user's. A file that existed before the run is replaced with `--overwrite` only, and keeps
                         its owner and mode. A file that appeared during the run is never replaced (`placing.py`). A
                         work file that was changed or swapped while it got its name loses the name again.

If something fails because of such a change, the message names the change, even where a library met it first.

So a run ends with the bytes of an undisturbed run, or with exit code 4 and the name of the file. This does not hold
against somebody with the same rights who writes between two system calls, or who makes SHA-256 collide.

The first record is the job's fingerprint (`fingerprint.py`): only a run that would write the same bytes resumes a job.
All writes go through `files.Files`, where the tests put their faults.
"""

from __future__ import annotations

from rerank_cli.journal.files import Files, Identity, WorkFile, identity_of, naming
from rerank_cli.journal.fingerprint import Fingerprint, same_output, sha256_of
from rerank_cli.journal.placing import MayReplace, feed, is_special, place_file, remove_file, write_file, write_whole
from rerank_cli.journal.watch import Watch
from rerank_cli.journal.work_folder import Job, Terms

__all__ = [
    "Files", "Fingerprint", "Identity", "Job", "MayReplace", "Terms", "Watch", "WorkFile", "feed", "identity_of",
    "is_special", "naming", "place_file", "remove_file", "same_output", "sha256_of", "write_file", "write_whole",
]  # fmt: skip
