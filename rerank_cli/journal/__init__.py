"""What makes a run survive kill -9, a power cut and a full disk: its work folder, and the journal in it.

A run is a sequence of windows (whole queries, cut by the input and the options alone), each of which adds some bytes to
the members of the job: rows, errors, and for an embedding model what it need not compute twice. They lie in `OUT.job/`:

    OUT.job/lock      flock of the process at work, with its pid and host
    OUT.job/rows      the bytes of rows, window after window: the output itself, or tables on their way to Parquet
    OUT.job/errors    the bytes of the errors file
    OUT.job/vectors   an embedding model only: the vectors of the texts that are new in a window
    OUT.job/texts     `--embeddings` only: which texts these are
    OUT.job/journal   one line a commit: which windows, which bytes of each file above, their sha256, the counts
    OUT.job/output    Parquet only: the output, made of `rows` when all windows are done
    OUT.job/embeddings, OUT.job/report   made at the end

The states of a job, and what moves it to the next one:

    absent    --- mkdir, flock --->            empty     nothing to lose; taken away by a run that ends here
    empty     --- first commit record --->     running   a later run continues behind the last commit
    running   --- commit record --->           running
    running   --- `complete` record --->       placing   nothing is computed any more, only files get their names
    placing   --- renames, folder removed ---> absent    OUT is there

A commit is: append the bytes, fsync the files that grew, append one record to the journal, fsync the journal. What is
behind the last record does not belong to the run, whatever it is, and the next process cuts it off; what is before it
is on disk.
A run that is ended by its input (too many bad rows, a fault in it) says so in a last record, `bad input`. With the same
input the next run goes on behind the last commit; with another one there is nothing to go on with, and it starts over.

`complete` is written when all files of the run are on disk; the renames after it (errors, report, vectors, OUT last,
then an fsync of their folders) can be repeated: a work file that is gone has its name already.

A record that is torn or damaged ends the journal there, and so does one whose bytes are not those of the
members any more (`sha256`): the run goes back to the last commit that is whole, and never further than that. A
record's checksum covers the one before it, so no record can be missing in between.

Commits are made after a window when `--checkpoint-every` seconds have passed since the last one, and when a run stops.
A kill therefore costs the windows finished in that time and the one that was computed. No byte of OUT depends on it.

A second hand may come at any time: another run that was given the lock, a script that tidies up, an editor, a backup.
Who holds what, and what is promised then:

    OUT.job/             ours alone. A folder of that name which is not ours (`own_folder.py`) is never touched. What
                         lies in it under our names is opened without following links, and refused if it has a second
                         name or another owner.
    OUT.job/lock         names the run that holds it. One that is gone, replaced or renamed by another run ends this
                         one: it writes, cuts and removes nothing more (`lock.py`).
    members, journal     this run's appends. At each commit the name must still lead to the open file and its size be
                         what was appended; at the end the bytes must have the running SHA-256 that was counted while
                         they were written (`seal.py`), else nothing gets a name, nor a table that was made of them
                         (`Job.reading`). The next run goes on behind the last commit whose bytes are whole.
    what is read         other people's, read only. Looked at before it is opened, at each commit and at the end
                         (`watch.py`): a change ends the run, and what was read since the last commit is not kept.
    OUT and beside it    the user's. A file that was there before the run is replaced with `--overwrite` only, and keeps
                         owner and mode; one that came during the run is not replaced at all (`placing.py`). A work
                         file that was touched or swapped in the moment in which it got its name loses it again.

Whatever fails, a library that reads a file again included, is told as the change that is behind it, where there is one.

So a run ends with the bytes of an undisturbed one, or with exit code 4 and the name of the file. It is no promise
against somebody with the same rights who writes between two system calls, or who makes SHA-256 collide.

The first record is the job's fingerprint (`fingerprint.py`): a job on disk is only continued by a run that would have
written the same bytes. Everything that is written here goes through `files.Files`, the seam for the tests' faults.
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
