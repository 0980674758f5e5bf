"""Draw the page images of `pages/` and write `pages.jsonl`, which lists them as candidates.

The pages are small documents of our own: a table, a bar chart, a notice and a recipe, in the font of Pillow itself. The
files are committed: neither the tool nor its tests run this script. Needs Pillow 11; run
`python samples/build_pages.py`.
"""

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parent
SIZE = (510, 660)
MARGIN = 40

TABLE = [
    ("Quarter", "Revenue", "Growth"),
    ("Q1", "4.1 M", "+2 %"),
    ("Q2", "4.3 M", "+5 %"),
    ("Q3", "4.9 M", "+14 %"),
    ("Q4", "5.0 M", "+2 %"),
]
BARS = {"Mon": 3, "Tue": 5, "Wed": 4, "Thu": 7, "Fri": 9, "Sat": 6}
NOTICE = """The lift in the east wing is out
of order until Thursday noon.
Please use the stairs or the lift
beside the library. Deliveries go
to the gate on Mill Street."""
RECIPE = """1 kg potatoes, boiled and sliced
3 spoons of vinegar
1 cup of hot broth
1 onion, chopped
Mix while warm, let it stand for
an hour, add chives."""


def blank(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A white page with a heading, and what draws on it."""
    page = Image.new("L", SIZE, 255)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), title, font=ImageFont.load_default(28), fill=0)
    draw.line((MARGIN, MARGIN + 42, SIZE[0] - MARGIN, MARGIN + 42), fill=0, width=2)
    return page, draw


def text_page(title: str, text: str) -> Image.Image:
    """A page of text."""
    page, draw = blank(title)
    draw.multiline_text((MARGIN, 120), text, font=ImageFont.load_default(24), fill=0, spacing=14)
    return page


def table_page(title: str) -> Image.Image:
    """A page with a table."""
    page, draw = blank(title)
    for number, row in enumerate(TABLE):
        top = 130 + 60 * number
        for column, cell in enumerate(row):
            draw.text((MARGIN + 150 * column, top), cell, font=ImageFont.load_default(24), fill=0)
        draw.line((MARGIN, top + 40, SIZE[0] - MARGIN, top + 40), fill=160)
    return page


def chart_page(title: str) -> Image.Image:
    """A page with a bar chart."""
    page, draw = blank(title)
    for number, (day, height) in enumerate(BARS.items()):
        left = MARGIN + 72 * number
        draw.rectangle((left, 560 - 45 * height, left + 48, 560), fill=110)
        draw.text((left, 575), day, font=ImageFont.load_default(22), fill=0)
    return page


def main() -> None:
    """Write the pages and the list of candidates."""
    pages = {
        "revenue": table_page("Revenue by quarter"),
        "visitors": chart_page("Visitors this week"),
        "notice": text_page("Notice", NOTICE),
        "recipe": text_page("Potato salad", RECIPE),
    }
    (FOLDER / "pages").mkdir(exist_ok=True)
    for name, page in pages.items():
        page.save(FOLDER / "pages" / f"{name}.png", optimize=True)
    images = [{"id": name, "image": f"pages/{name}.png"} for name in pages]
    texts = [
        {"id": "notice-text", "text": " ".join(NOTICE.split())},
        {"id": "recipe-page", "text": " ".join(RECIPE.split()), "image": "pages/recipe.png"},
    ]
    rows = [
        {"query_id": "p1", "query": "how much did revenue grow in the third quarter?", "passages": images},
        {"query_id": "p2", "query": "which lift works today?", "passages": images[1:3] + texts},
    ]
    (FOLDER / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
