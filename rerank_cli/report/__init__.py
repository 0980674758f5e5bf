"""What a run tells about itself: a JSON document, and a page made from it."""
