"""What a transform makes of a file, window by window, without ever being whole."""
