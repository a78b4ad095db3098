"""Pages drawn by JavaScript: which need a browser, and what a real one makes of them."""

import pytest
from shells import SHELLS, WHOLE

from stages.crawl.shells import needs_browser


@pytest.mark.parametrize("name", SHELLS)
def test_a_shell_needs_a_browser(name):
    assert needs_browser(SHELLS[name])


@pytest.mark.parametrize("name", WHOLE)
def test_a_page_that_is_whole_needs_none(name):
    assert not needs_browser(WHOLE[name])
