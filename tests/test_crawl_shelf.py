"""The shelf: pages on the disk that are found like those of a dict."""

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.records import Heading
from stages.crawl.page import Page
from stages.crawl.shelf import Shelf

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
PAGES = st.builds(
    Page,
    url=TEXT,
    title=TEXT,
    text=TEXT,
    headings=st.lists(
        st.builds(Heading, start=st.integers(0, 9), level=st.just(1), title=TEXT, anchor=TEXT)
    ).map(tuple),
    canonical=st.none() | TEXT,
    pairs=st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple),
    key=TEXT,
)
URLS = st.sampled_from(["https://a.example/", "https://a.example/ü", "b.md#L1-L2"])
STEPS = st.lists(st.tuples(URLS, st.none() | PAGES), max_size=12)


@settings(max_examples=50, deadline=None)
@given(STEPS)
def test_a_shelf_holds_what_a_dict_holds(steps: list[tuple[str, Page | None]]) -> None:
    """None takes a page away."""
    held: dict[str, Page] = {}
    with Shelf() as shelf:
        for url, page in steps:
            if page is None:
                assert (shelf.pop(url, None) is None) == (held.pop(url, None) is None)
            else:
                shelf[url] = held[url] = page
            assert dict(shelf) == held and len(shelf) == len(held)
            assert [url in shelf for url in held] == [True] * len(held)


def test_pages_may_be_changed_and_taken_away_while_all_are_looked_at() -> None:
    with Shelf() as shelf:
        for n in range(9):
            shelf[str(n)] = Page(str(n), "", "text")
        for url, page in shelf.items():
            if int(url) % 3:
                del shelf[url]
            else:
                shelf[url] = Page(url, "seen", page.text)
        assert [page.title for page in shelf.values()] == ["seen"] * 3
