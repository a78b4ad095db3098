"""Office files are ZIP archives: one that is broken or unpacks to too much is refused unread."""

import io
import zipfile

from stages.crawl.page import UnreadableError

MOST_BYTES = 512 << 20
"""Of all parts, unpacked."""
MOST_XML_BYTES = 64 << 20
"""Of one part of XML, unpacked."""
MOST_PARTS = 20_000


def check(body: bytes) -> None:
    """Raise where the archive says that it unpacks to more; zipfile never reads beyond that."""
    try:
        parts = zipfile.ZipFile(io.BytesIO(body)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        if body.startswith(b"\xd0\xcf\x11\xe0"):  # OLE: also what a password makes of a file
            raise UnreadableError(
                "encrypted", "behind a password, or of the format before 2007"
            ) from None
        raise UnreadableError("broken", str(error)) from None
    xml = [part.file_size for part in parts if part.filename.lower().endswith((".xml", ".rels"))]
    total = sum(part.file_size for part in parts)
    if len(parts) > MOST_PARTS or total > MOST_BYTES or max(xml, default=0) > MOST_XML_BYTES:
        raise UnreadableError("too_large", f"{len(parts)} parts unpack to {total} bytes")
