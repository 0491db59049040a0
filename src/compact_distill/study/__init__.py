"""Several runs compared: the demo."""
