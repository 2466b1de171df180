"""The spool: stores events on disk until they have an outcome.

::

    event loop                              writer's thread
    ----------                              ---------------
    intake ─▶ writer ─────── queue ───────▶ writer_thread ─▶ group_commit ─▶ file
    running_spool ◀── writer_listener ────┤                                   │
        ├─▶ ledger ─▶ process_events      ├─ log_reader ◀── outcome_log ──────┤
        └─▶ forwarder ◀── ReaderListener ─┴─ reader ◀────── event_table ──────┘
                 └─▶ the engine of _delivery

Each event is written to the file first. The process that holds the lease (the right to send) reads the event from the
file, and the engine of this process sends the event. The forwarder passes the outcome to the writer, which writes the
outcome to the log in the file. The process that tracked the event reads the outcome from the log.
"""
