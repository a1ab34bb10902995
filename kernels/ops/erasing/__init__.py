"""Where the present classes are (foreground), and pictures without these places (erase)."""
