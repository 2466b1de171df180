"""The address of an emulator, and the URLs of its API and its control side."""

import attrs

__all__ = ["Address"]


@attrs.frozen
class Address:
    """The address of an emulator.

    Attributes:
        root: the URL without a path at which the emulator listens, such as ``http://127.0.0.1:40123``.
    """

    root: str

    @property
    def url(self) -> str:
        """The API's base URL, such as ``http://127.0.0.1:40123/1.0/``."""
        return f"{self.root}/1.0/"

    @property
    def control_url(self) -> str:
        """The control side's base URL, such as ``http://127.0.0.1:40123/_control/``."""
        return f"{self.root}/_control/"
