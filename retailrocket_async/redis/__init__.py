"""One request limit for all processes of a shop; the processes share the limit through Redis.

Needs the extra `redis`::

    limiter = RedisLimiter(redis.asyncio.Redis.from_url("redis://localhost"))
    client = AsyncTrackingClient.from_env(limiter=limiter)
"""

from __future__ import annotations

from retailrocket_async._runtime.exports import publish
from retailrocket_async._runtime.extras import needing

with needing("redis"):
    from retailrocket_async.redis._limiter import RedisLimiter
    from retailrocket_async.redis._member import RedisUnreachableError

__all__ = ["RedisLimiter", "RedisUnreachableError"]

publish(globals())
