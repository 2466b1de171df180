"""Events on disk until they have an outcome.

::

    event loop                              writer's thread
    ----------                              ---------------
    intake ─▶ writer ─────── queue ───────▶ writer_thread ─▶ group_commit ─▶ file
    running_spool ◀── writer_listener ────┤                                   │
        ├─▶ ledger ─▶ process_events      ├─ log_reader ◀── outcome_log ──────┤
        └─▶ forwarder ◀── ReaderListener ─┴─ reader ◀────── event_table ──────┘
                 └─▶ the engine of _delivery

An event goes to the file first, and from there to the engine of the process that sends. Its outcome takes the way back:
from the engine through forwarder and writer to the log in the file, and from there to the process that tracked it.
"""
