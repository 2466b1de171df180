"""The shop of compose.yaml: it publishes ten events a second to the stream from which the relay delivers."""

from __future__ import annotations

import asyncio
import os

from redis.asyncio import Redis

from retailrocket_async import View, new_session_id
from retailrocket_async.relay import RedisStream, publish_envelopes


async def main() -> None:
    """Publish until stopped."""
    redis = Redis.from_url(os.environ["SHOP_REDIS"])
    stream = RedisStream(redis, os.environ["SHOP_STREAM"])
    product = 0
    while True:
        product += 1
        await publish_envelopes(stream, [View(session_external_id=new_session_id(), product_id=product)])
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main())
