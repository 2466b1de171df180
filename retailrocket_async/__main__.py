"""``python -m retailrocket_async`` runs the command line, also if its console script is not on the path."""

from retailrocket_async.cli import main

if __name__ == "__main__":
    main()
