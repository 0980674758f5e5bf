"""Files named by a URL: object stores and the Hugging Face Hub, read and written like local files.

`url.py` says which texts are URLs. `store.py` is the one interface to a store and says what each call promises. It is
implemented by `object_store.py` (S3, GCS, Azure through obstore) and `hub_store.py` (data sets of the Hub).
`url_path.py` lets a URL stand where the program expects a `Path`. A URL is opened only where the user typed it; a URL
in a row is text.

The rest of the program relies on these properties of a store:

    read, stat, list   Every call sees each put and delete acknowledged before it (S3 since 2020, GCS, Azure). A read
                       names the version it wants by its etag: if the object has changed, the read fails.
    put                Atomic: the whole object or nothing. Of two unconditional puts the last one wins.
    put_new            Like `put`, but only one of all callers succeeds on a name. Machines agree on an order by this
                       call alone.
    put_file           Like `put_new` or `put`, in parts: the object gets its name when the upload is completed. The
                       parts of an unfinished upload are visible to `drop_uploads` alone.
    a failed call      It may have happened, may still happen until it times out, or may never happen. So a retried
                       `put_new` that finds the name taken reads the object and compares the bytes. `put`, `put_file`
                       and `delete` are idempotent.
    clocks             Two times are compared only if the store gave both. The clock of a machine is never used.

Credentials come from each cloud's usual chain and go to the client alone: no message, report or journal contains them,
and a URL with credentials in it is refused without being repeated.
"""

from rerank_cli.storage.copies import fetch_model
from rerank_cli.storage.listing import is_object, matching_objects, objects_below
from rerank_cli.storage.url import is_url, local_name, refuse_url, shell_name
from rerank_cli.storage.url_path import UrlPath, is_on_hub, path_of

__all__ = [
    "UrlPath", "fetch_model", "is_object", "is_on_hub", "is_url", "local_name", "matching_objects", "objects_below",
    "path_of", "refuse_url", "shell_name",
]  # fmt: skip
