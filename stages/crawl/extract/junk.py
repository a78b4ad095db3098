"""An element to whether it belongs to the frame of a page: menus, buttons, permalinks, gutters."""

from collections.abc import Collection, Mapping

TAGS = frozenset(
    (
        *("script", "style", "noscript", "template", "iframe", "object", "svg", "canvas"),
        *("dialog", "nav", "button", "input", "select", "textarea", "footer"),
    )
)
_CLASSES = frozenset(
    (
        *("headerlink", "anchorjs-link", "hash-link", "header-anchor", "heading-anchor"),
        *("paramlink", "toctree-wrapper", "toc", "related", "related-pages"),
        *("sphinxsidebar", "table-of-contents", "breadcrumb", "breadcrumbs"),
        *("rst-breadcrumbs-buttons", "theme-doc-breadcrumbs", "viewcode-link"),
        *("viewcode-back", "copybtn", "clipboard-copy", "mw-editsection", "navbox"),
        *("linenos", "lineno", "gutter", "lnt", "hljs-ln-numbers", "line-numbers-rows"),
        *("blob-num", "sr-only", "visually-hidden", "visuallyhidden", "screen-reader-text"),
        *("katex-html", "edit-this-page", "view-this-page", "theme-edit-this-page"),
        *("back-to-top", "prev-next-area", "prev-next-footer", "pagination-nav"),
        *("theme-doc-footer", "nav-chapters", "theme-doc-toc-mobile"),
        *("theme-doc-version-badge", "md-source-file", "md-content__button"),
        *("comments-area", "sharedaddy", "jp-relatedposts", "post-navigation"),
        *("entry-meta", "entry-footer", "MathJax_Preview", "feedback-container"),
        "docs-feedback",
    )
)
_IDS = frozenset(("toc", "footer", "comments", "respond", "disqus_thread"))
_ROLES = frozenset(("navigation", "search", "contentinfo"))


def is_junk(tag: str, attributes: Mapping[str, str | None]) -> bool:
    return tag in TAGS or is_named((attributes.get("class") or "").split()) or is_part(attributes)


def is_named(classes: Collection[str]) -> bool:
    """Do its classes say so?"""
    return not _CLASSES.isdisjoint(classes) or (
        "contents" in classes and ("local" in classes or "topic" in classes)
    )


def is_part(attributes: Mapping[str, str | None]) -> bool:
    """Do its role or its id say so?"""
    return attributes.get("role") in _ROLES or attributes.get("id") in _IDS
