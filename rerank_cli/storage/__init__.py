"""Where files lie that are named by a URL: object stores and the Hugging Face Hub, read and written as files are.

`url.py` says which texts are URLs. `store.py` is the one interface to a store, with what each call promises; its sides
are `local_store.py` (a folder), `object_store.py` (S3, GCS, Azure through obstore) and `hub_store.py` (data sets of the
Hub). `url_path.py` makes a URL usable where the program has a `Path`. A URL is opened only where the user typed it:
texts in rows are never looked at here.

The model of a store, on which the rest of the program relies, is this:

    read, stat, list   After a put or a delete was acknowledged, each later call sees it (S3 since 2020, GCS, Azure).
                       A read says which version it means (its etag): other bytes are an error and never a mixture.
    put                The whole object or nothing, at one moment. Between two unconditional puts the last one wins.
    put_new            As `put`, and only one of all callers succeeds on a name. It is the only call from which order
                       between machines is made.
    put_file           As `put_new` or `put`, in parts: the object has its name when the upload is completed, never
                       before. Parts of an upload that was never completed are seen by `drop_uploads` alone.
    a failed call      It may have happened, may happen within the call's own time, or never. So a `put_new` that was
                       tried again and finds the name taken reads the object, and the bytes say whose it is. What is
                       put anew on purpose (`put`, `put_file`, `delete`) gives the same result twice.
    clocks             Two times are compared only where the store gave both. No machine's own clock counts.

Credentials are found by each cloud's usual chain. They are handed to the client and to nothing else: no message, report
or journal has room for them, and a URL that holds some is refused without being repeated.
"""

from rerank_cli.storage.copies import fetch_model
from rerank_cli.storage.listing import is_object, matching_objects, objects_below
from rerank_cli.storage.url import is_url, refuse_url
from rerank_cli.storage.url_path import UrlPath, is_on_hub, path_of

__all__ = [
    "UrlPath", "fetch_model", "is_object", "is_on_hub", "is_url", "matching_objects", "objects_below", "path_of",
    "refuse_url",
]  # fmt: skip
