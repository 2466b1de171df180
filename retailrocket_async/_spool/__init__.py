"""The spool: stores events on disk until they have an outcome.

::

    event loop                              writer's thread
    ----------                              ---------------
    intake ─▶ writer ─────── queue ───────▶ writer_thread ─▶ group_commit ─▶ file
    running_spool ◀── writer_listener ────┤                                   │
        ├─▶ ledger ─▶ process_events      ├─ log_reader ◀── outcome_log ──────┤
        └─▶ forwarder ◀── ReaderListener ─┴─ reader ◀────── event_table ──────┘
                 └─▶ the engine of _delivery

Each event is written to the file first. The process that holds the lease reads it and passes it to its engine, which
sends it. The engine's outcome goes through forwarder and writer to the log in the file; the process that tracked the
event reads the outcome there.
"""
