"""What the client needs of asyncio, threads and the process: one event loop, detached tasks, foreign code."""
