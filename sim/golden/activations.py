"""Golden model of Activations: words of Q bytes, any P consecutive ones at once."""

from hw.config import AcceleratorConfig


class ActivationMemory:
    """The words that are known; addresses wrap at the size of the memory, a power of two."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._words: dict[int, int] = {}

    def write(self, address: int, data: int, mask: int) -> None:
        """Store the bytes of `data` that `mask` selects."""
        for row in range(self._config.rows):
            if mask >> row & 1:
                byte = 0xFF << 8 * row
                self._words[address] = self._words.get(address, 0) & ~byte | data & byte

    def read(self, address: int) -> list[int | None]:
        """The word of each lane; None where nothing was written."""
        words = self._config.activation_words
        return [self._words.get((address + lane) % words) for lane in range(self._config.pixels)]
