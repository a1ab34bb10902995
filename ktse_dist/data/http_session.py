"""HTTP as we allow it: no answer longer than the range that was asked for, no redirect to another scheme."""

from typing import Any

import aiohttp
from yarl import URL

from ktse_dist.data.remote import NoRanges


async def session(silence: float, **options: Any) -> aiohttp.ClientSession:
    """silence: seconds without a byte until a request fails. options: as aiohttp.ClientSession takes them."""
    redirects = aiohttp.TraceConfig()
    redirects.on_request_redirect.append(refuse_other_schemes)
    ours = {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence),
        "response_class": Answer,
        "trace_configs": [redirects],
        "auto_decompress": False,  # a short answer stays short
        "headers": {**options.get("headers", {}), "Accept-Encoding": "identity"},
        "trust_env": True,  # proxies, and the logins of ~/.netrc
    }
    return aiohttp.ClientSession(**(options | ours))


class Answer(aiohttp.ClientResponse):
    """The body of a ranged request, in memory."""

    async def read(self) -> bytes:
        """ValueError for a body that is longer than was asked for, or begins elsewhere."""
        first, last = map(int, self.request_info.headers["Range"].removeprefix("bytes=").split("-"))
        if self.status >= 300:
            return b""  # whoever asked looks at the status next
        body = bytearray()
        async for piece in self.content.iter_any():
            body += piece
            if len(body) > last + 1 - first or (self.status != 206 and first):
                self.close()
                raise NoRanges("the server ignores ranges (HTTP 206), which are needed to read large files in parts")
        return bytes(body)


async def refuse_other_schemes(_: Any, __: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
    target = redirect.url.join(URL(redirect.response.headers.get("Location") or redirect.response.headers["URI"]))
    if target.scheme != redirect.url.scheme:
        raise ValueError(f"leads on to {target.scheme}://, and no redirect to another scheme is followed")
